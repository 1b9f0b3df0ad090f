"""Pairs of texts: how they are framed, cut and refused."""

import pytest

from matta_jax import data
from matta_jax.errors import UserError


def test_pairs_are_framed_and_cut_at_their_end(embedder):
    config = embedder(data__seq_len=6)
    pairs = data.split_data(config, held_out=False)
    example, row = pairs.examples[0], pairs[0]
    for side, text in enumerate((example.text, example.pair)):
        read = list(text.encode()[:4])
        length = int(row["length"][side])
        assert length == len(read) + 2
        # The byte tokenizer's end stands on both sides of a text.
        assert row["tokens"][side][:length].tolist() == [0, *read, 0]
    assert pairs.truncated > 0 and row["tokens"].shape == (2, 6)
    assert len(pairs.part(2)) == len(pairs) - 2 and pairs.part(2)[0]["tokens"].tolist() == (
        pairs[2]["tokens"].tolist()
    )


def test_pairs_without_a_second_text_are_refused(embedder, tmp_path):
    config = embedder(data__pair_field=None)
    with pytest.raises(UserError, match="data.pair_field=None; name the field"):
        data.split_data(config, held_out=False)
    (tmp_path / "a.jsonl").write_text('{"text": "a", "pair": "b"}\n{"text": "a"}\n')
    with pytest.raises(UserError, match="line 2 has no text field 'pair'"):
        data.glob_data(embedder(), f"{tmp_path}/*.jsonl")


def test_pairs_of_columns_have_scores_where_a_field_is_named(embedder, tmp_path):
    (tmp_path / "a.tsv").write_text("ab\tcd\t2.5\nef\tgh\t0\n")
    source = f"text:{tmp_path}/*.tsv"
    config = embedder(data__source=source, data__score_field="score")
    pairs = data.glob_data(config, f"{tmp_path}/*.tsv")
    assert [float(pairs[i]["score"]) for i in range(2)] == [2.5, 0.0]
    assert float(pairs.part(1)[0]["score"]) == 0.0
    plain = data.glob_data(embedder(data__source=source), f"{tmp_path}/*.tsv")
    assert "score" not in plain[0] and plain.fingerprint != pairs.fingerprint
