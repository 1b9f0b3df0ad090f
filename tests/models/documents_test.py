"""Documents apart: a window of several gives what each of them gives by itself."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax import data, train
from matta_jax.config import override
from matta_jax.errors import UserError
from matta_jax.models import DOCUMENTS, apply, init_params, plan_of
from matta_jax.selection import scoring
from matta_jax.sharding import make_mesh, place_batch
from matta_jax.tokenizers import make_tokenizer
from matta_jax.training import make_eval_step, make_setup

LENGTHS = (5, 1, 14, 9)


def family_fields(family):
    if family == "gpt":
        return {}
    return {
        "model__name": "llama",
        "model__num_kv_heads": 2,
        "nest__num_kv_heads": 3,
        "nest__num_heads": None,
        "model__window": 4,
        "model__window_pattern": 2,
    }


@pytest.fixture(params=["gpt", "llama"])
def config(request, tiny):
    return tiny(data__documents="apart", **family_fields(request.param))


def windows_of(stream, *, start_id=None, seq_len=29):
    return data.Windows(
        np.asarray(stream, np.uint16), seq_len, 0, 0, 1, "", start_id=start_id, apart=True
    )


@pytest.mark.slow
def test_hidden_states_are_those_of_each_document_by_itself(config):
    plan = plan_of(config)
    params = init_params(plan.architecture, jax.random.key(0), plan.nest)
    tokens = np.random.default_rng(0).integers(1, 256, (2, sum(LENGTHS))).astype(np.int32)
    documents = np.repeat(np.arange(len(LENGTHS)), LENGTHS)[None].repeat(2, axis=0)
    together = apply(plan.architecture, params, {"tokens": tokens, DOCUMENTS: documents})
    together = together.reshape(2, sum(LENGTHS), -1)
    start = 0
    for length in LENGTHS:
        piece = slice(start, start + length)
        alone = apply(plan.architecture, params, {"tokens": tokens[:, piece]})
        np.testing.assert_allclose(together[:, piece].reshape(alone.shape), alone, atol=2e-5)
        start += length
    joined = apply(plan.architecture, params, {"tokens": tokens}).reshape(together.shape)
    assert jnp.abs(joined - together)[:, LENGTHS[0] :].max() > 1e-2


@pytest.mark.parametrize("start_id", [None, 7])
def test_a_window_tells_its_documents_apart(start_id):
    # The end of a document, a whole one, and the beginning of a third.
    separator = [0] if start_id is None else [0, start_id]
    stream = [11, 12, *separator, 21, 22, 23, *separator, 31, 32, 33]
    row = windows_of(stream, start_id=start_id, seq_len=len(stream) - 1)[0]
    first, second = stream.index(0), stream.index(0, 3)
    gap = len(separator) - 1
    expected = [0] * first + [-1] * gap + [1] * (second - first - gap)
    expected += [-1] * gap + [2] * (len(stream) - 1 - len(expected) - gap)
    assert row["documents"].tolist() == expected
    assert "documents" not in dataclasses.replace(windows_of(stream), apart=False)[0]


@pytest.mark.few(2)
@pytest.mark.parametrize("start_id", [None, 7])
def test_the_loss_of_a_window_is_that_of_its_documents(config, start_id):
    setup = make_setup(config, make_mesh((1, 1, 1)))
    params = setup.init().params
    sums_of = make_eval_step(setup)
    rng = np.random.default_rng(1)
    # Shifted past the separators.
    texts = [rng.integers(8, 256, length).tolist() for length in (6, 9, 4)]
    separator = [0] if start_id is None else [0, start_id]
    stream = list(separator)
    for text in texts:
        stream += [*text, *separator]

    def sums(pieces):
        """Of the targets of some rows, each padded to the length of a window."""
        totals = {}
        for piece in pieces:
            row = windows_of(piece, start_id=start_id)[0]
            batch = {name: value[None].repeat(4, axis=0) for name, value in row.items()}
            batch["length"] = batch["length"] * np.array([1, 0, 0, 0], np.int32)
            measured = sums_of(params, place_batch(batch, setup.mesh))
            for name, value in measured.items():
                totals[name] = totals.get(name, 0.0) + float(value)
        return totals

    together = sums([stream])
    alone = sums([[separator[-1], *text, 0] for text in texts])
    assert together["targets"] == alone["targets"] == sum(len(text) + 1 for text in texts)
    for name in ("student", "ta"):
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-5)


@pytest.mark.slow
def test_a_run_with_documents_apart_and_its_scores(tiny, tmp_path):
    config = tiny(data__documents="apart", train__num_steps=3)
    train(config, tmp_path / "run", log=lambda _: None)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = list(map(json.loads, lines))
    losses = [row["eval/ta"] for row in rows if "eval/ta" in row]
    tokenizer = make_tokenizer("byte")
    apart = data.split_data(config, tokenizer, held_out=True)
    joined = data.split_data(override(config, {"data.documents": "joined"}), held_out=True)
    assert apart.apart and not joined.apart and apart.fingerprint == joined.fingerprint
    assert losses and all(np.isfinite(losses))
    # A model is scored as it was trained.
    assert scoring.task_data(config, "held_out").apart
    assert scoring.task_data(config, config.data.source.removeprefix("text:")).apart


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"teacher__labels": "l", "teacher__student_weight": 1.0},
            "teacher.labels='l' are of joined documents",
        ),
        ({"data__documents": "aprt"}, "data.documents='aprt' must be one of joined, apart"),
    ],
)
def test_what_does_not_fit_is_one_line(tiny, fields, words):
    with pytest.raises(UserError, match=words):
        tiny(**{"data__documents": "apart"} | fields)


def test_examples_have_no_documents(embedder):
    with pytest.raises(UserError, match="data.documents='apart' is without effect on model.name"):
        embedder(data__documents="apart")
