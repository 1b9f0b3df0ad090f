"""Near-duplicates: found where text is shared, and nowhere else."""

import json

import numpy as np
import pytest

from matta_jax import report, train
from matta_jax.data import _grams


def text_of(seed, size=3000):
    letters = np.random.default_rng(seed).integers(97, 123, size).astype(np.uint8)
    return letters.tobytes()


def grams_of(*texts):
    sampler = _grams.GramSampler()
    for text in texts:
        sampler.add(text.decode())
    return sampler.grams()


def test_stretches_are_sampled_by_what_they_hold_wherever_they_stand():
    inner = text_of(0)
    alone = set(_grams.sampled_grams(inner))
    assert 5 < len(alone) < 60  # One of 128.
    for before in (1, 7, 1000):
        assert alone <= set(_grams.sampled_grams(text_of(1, before) + inner + text_of(2)))
    assert not alone & set(_grams.sampled_grams(text_of(3, 100_000)))


def test_a_long_text_is_that_of_its_pieces(monkeypatch):
    data = text_of(4, 20_000)
    expected = _grams.sampled_grams(data)
    monkeypatch.setattr(_grams, "_PIECE", 777)
    _grams._powers.cache_clear()
    np.testing.assert_array_equal(_grams.sampled_grams(data), expected)
    _grams._powers.cache_clear()


@pytest.mark.parametrize("size", [0, 1, 63])
def test_a_text_below_a_stretch_has_none(size):
    assert len(_grams.sampled_grams(text_of(0, size))) == 0


def test_documents_count_where_half_of_them_is_shared():
    shared, half, little, new = (text_of(seed, 20_000) for seed in range(4))
    held_out = grams_of(shared, b"short", half, little, new)
    training = [
        grams_of(text_of(9) + shared),
        grams_of(half[:12_000], little[:3_000], text_of(10, 50_000)),
    ]
    assert _grams.near_duplicates(held_out, training) == 2
    assert _grams.near_duplicates(held_out, []) == 0
    assert _grams.near_duplicates(grams_of(b"short"), training) == 0
    assert _grams.near_duplicates(grams_of(), training) == 0


@pytest.mark.slow
def test_a_run_tells_of_held_out_texts_that_it_trains_on(tiny, tmp_path):
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(97, 123, 2000))) for _ in range(20)]
    for name, documents in (("train", texts), ("held", [texts[0] + "!", "new " * 100])):
        lines = [json.dumps({"text": text}) + "\n" for text in documents]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    lines = []
    config = tiny(
        data__source=f"text:{tmp_path}/train.jsonl",
        data__eval_source=f"text:{tmp_path}/held.jsonl",
        data__cache_dir=str(tmp_path / "cache"),
        train__num_steps=1,
        optimizer__warmup_steps=0,
    )
    train(config, tmp_path / "run", log=lines.append)
    assert any(line.startswith("1 of the 2 held-out documents have at least") for line in lines)
    told = (report(tmp_path / "run").files[1]).read_text()
    assert "| held-out documents that stand in what is trained on too | 1 of 2" in told
