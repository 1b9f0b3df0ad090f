"""The comparison with MaxText: equal sizes, and shares of the contender of one policy."""

import pathlib
import sys
import types

import pytest

FOLDER = pathlib.Path(__file__).parents[3] / "experiments" / "benchmarks"


@pytest.fixture
def maxtext(load, monkeypatch):
    # harness pins the process that imports it.
    monkeypatch.setitem(sys.modules, "harness", types.SimpleNamespace(CORES={0}))
    monkeypatch.syspath_prepend(FOLDER)
    return load("maxtext")


def test_both_have_equal_sizes(maxtext):
    theirs = maxtext.contenders()["MaxText, minimal"][2]
    ours = maxtext.contenders()["TA alone, dots"][2]
    model, data = ours["model"], ours["data"]
    assert theirs["base_emb_dim"] == model["d_model"] and theirs["base_mlp_dim"] == model["d_ff"]
    assert theirs["base_num_decoder_layers"] == model["num_layers"]
    assert theirs["base_num_query_heads"] == theirs["base_num_kv_heads"] == model["num_heads"]
    assert theirs["head_dim"] == model["head_dim"] and theirs["vocab_size"] == model["vocab_size"]
    assert theirs["max_target_length"] == data["seq_len"]
    assert theirs["per_device_batch_size"] * ours["mesh"]["fsdp"] == data["batch_size"]


def test_a_share_is_of_maxtext_under_the_same_policy(maxtext):
    figures = dict.fromkeys(maxtext.COMPARED, 4.0)
    rows = [
        {"step": "MaxText, full", "policy": "full"} | figures,
        {"step": "TA alone, full", "policy": "full", "analytic FLOPs a token": 2.0}
        | dict.fromkeys(figures, 3.0),
        {"step": "joint, full", "policy": "full", "analytic FLOPs a token": 5.0} | figures,
        {"step": "MaxText, minimal", "policy": "minimal"} | dict.fromkeys(figures, 1.0),
        {"step": "TA alone, dots", "policy": "minimal"} | dict.fromkeys(figures, 2.0),
    ]
    shares = maxtext.of_first(rows)
    assert [row["HBM GB"] for row in shares] == [1.0, 0.75, 1.0, 1.0, 2.0]
    assert [row["bar"] for row in shares] == ["", 1.0, pytest.approx(1.05 * 2.5), "", ""]


def test_without_an_environment_a_line_says_what_to_make(maxtext, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["maxtext.py"])
    maxtext.main()
    assert capsys.readouterr().out.startswith("skipped: MaxText (make its environment")
