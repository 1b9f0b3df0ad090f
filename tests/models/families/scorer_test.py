"""The scorer: what it computes, how it is nested, and its examples."""

import json

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from matta_jax import (
    compare,
    data,
    elastic,
    evaluate,
    extract,
    generate,
    models,
    nesting,
    packages,
    search,
    train,
)
from matta_jax import config as c
from matta_jax.distill import make_objective
from matta_jax.errors import UserError
from matta_jax.evaluation import _auc
from matta_jax.training import next_window

init_params = jax.jit(models.init_params, static_argnums=(0, 2))
sub_model_apply = jax.jit(models.sub_model_apply, static_argnums=(0, 3))


@pytest.fixture(scope="module")
def scorer(examples, tiny):
    """`scorer(**fields)`: a Config with a text, a pair and features."""
    source = examples()

    def make(**fields):
        scorer_fields = {
            "model__name": "scorer",
            "model__num_dense": 2,
            "model__categories": [3, 5],
            "data__source": source,
        }
        return tiny(**scorer_fields | {"data__pair_field": "pair", "data__batch_size": 8} | fields)

    return make


@pytest.fixture(scope="module")
def trained(scorer, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("scorer") / "run"
    train(scorer(train__num_steps=20), workdir, log=lambda _: None)
    return workdir


def setup_of(config):
    """The plan of a run, and fresh weights."""
    plan = models.plan_of(config)
    return plan, init_params(plan.architecture, jax.random.key(0), plan.nest)


def batch_of(config, rows=range(6)):
    examples = data.split_data(config, held_out=False)
    return {name: jnp.stack([examples[i][name] for i in rows]) for name in examples[0]}


def run_ta(config, batch):
    plan, params = setup_of(config)
    inputs = plan.schema.targets(batch).inputs
    return sub_model_apply(plan, params, inputs, plan.nest.ta)


def test_padding_says_nothing_and_every_input_counts(scorer):
    config = scorer()
    batch = batch_of(config)
    scores = run_ta(config, batch)
    assert scores.shape == (6,)
    beyond = jnp.arange(32) >= batch["length"][:, None]
    padded = run_ta(config, batch | {"tokens": jnp.where(beyond, 77, batch["tokens"])})
    np.testing.assert_allclose(padded, scores, atol=1e-6)
    for name, changed in {
        "tokens": batch["tokens"]
        .at[:, 0]
        .add(1),  # Seen by the positions after it, and before those by none.
        "dense": batch["dense"] + 1,
        "categorical": batch["categorical"].at[:, 1].set((batch["categorical"][:, 1] - 2) % 5 + 3),
    }.items():
        assert np.abs(run_ta(config, batch | {name: changed}) - scores).min() > 1e-6, name


def test_each_position_sees_those_after_it(scorer):
    config = scorer(model__num_dense=0, model__categories=[])
    batch = batch_of(config)
    plan, params = setup_of(config)
    params["embed"]["positions"] = jnp.zeros_like(params["embed"]["positions"])

    def apply(tokens):
        inputs = {"tokens": tokens, "length": jnp.full(6, 32)}
        return sub_model_apply(plan, params, inputs, plan.nest.ta)

    np.testing.assert_allclose(apply(batch["tokens"][:, ::-1]), apply(batch["tokens"]), atol=1e-5)


def test_an_empty_text_is_scored_by_its_features(scorer):
    config = scorer()
    batch = batch_of(config)
    empty = batch | {"length": jnp.zeros(6, jnp.int32)}
    first = run_ta(config, empty)
    assert np.isfinite(first).all()
    np.testing.assert_allclose(
        run_ta(config, empty | {"tokens": batch["tokens"] + 1}), first, atol=1e-6
    )
    assert np.isfinite(run_ta(scorer(model__num_dense=0, model__categories=[]), empty)).all()


@pytest.mark.slow
def test_extracted_and_in_place_score_the_same(trained, tmp_path):
    specs = ["student", "d_ff=16,48,32", "layers=2;d_model=16;num_heads=2", "ta"]
    made = extract(str(trained), specs, tmp_path / "models")
    assert all(model.max_difference == 0 for model in made)
    extracted = compare(models=[model.path for model in made], tasks=["auc:held_out"])
    in_place = compare(checkpoint=str(trained), sub_models=specs, tasks=["auc:held_out"])
    for evaluation, expected in zip(extracted.evaluations, in_place.evaluations, strict=True):
        assert evaluation.scores == pytest.approx(expected.scores, abs=1e-6)
        assert evaluation.scores["auc:held_out"] > 0.7
    assert extracted.baselines["auc:held_out"]["TF-IDF cosine"] == 0.5  # All pairs are the same.
    assert extracted.baselines["auc:held_out"]["features, logistic regression"] > 0.95
    again = elastic.verify(made[1].path)
    assert again.architecture.options["categories"] == (3, 5)
    with pytest.raises(UserError, match="format='hf' is for language models"):
        extract(
            str(trained), ["student"], tmp_path / "hf", packaging=packages.Packaging(format="hf")
        )
    for task in ("lambada:x", "sat_math:x", "bits_per_byte:held_out"):
        with pytest.raises(UserError, match="is for language models|has no loss of a text"):
            evaluate(model=made[0].path, tasks=[task])
    with pytest.raises(UserError, match="is a scorer, and writes no text"):
        generate(packages.load_model(made[0].path), "a", num_tokens=1)
    result = search(str(trained), tmp_path / "search", log=lambda _: None)
    assert "nats/example" in result.table and result.pick.verified > 0


def test_a_softmax_of_two_is_a_sigmoid(scorer):
    sigmoid = scorer(nest__mix_per_step=0)
    softmax = scorer(nest__mix_per_step=0, model__num_classes=2)
    z = jnp.array([0.3, -1.0, 2.0])
    labels, weights = jnp.array([1, 0, 1]), jnp.ones(3)
    objective = make_objective(sigmoid.objective, (nesting.STUDENT,))
    for logits in (z, jnp.stack([jnp.zeros(3), z], -1)):
        loss, _ = objective(
            [logits], None, labels, weights, ramp=jnp.ones(()), total=jnp.float32(3)
        )
        assert float(loss) == pytest.approx(
            float(np.mean(np.logaddexp(0, np.where(labels, -z, z)))), rel=1e-6
        )
    assert run_ta(softmax, batch_of(softmax)).shape == (6, 2)


@pytest.mark.slow
def test_a_scorer_may_be_the_teacher(scorer, trained, tmp_path):
    config = scorer(
        teacher__model=str(trained), teacher__student_weight=1.0, teacher__temperature=2.0
    )
    train(config, tmp_path / "run", log=lambda _: None)
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    line = next(line for line in lines if "loss" in line)
    assert line["teacher_student"] > 0
    with pytest.raises(UserError, match="num_dense=2, and must have the run's 0"):
        train(
            scorer(
                **{
                    "teacher__model": str(trained),
                    "teacher__student_weight": 1.0,
                    "model__num_dense": 0,
                }
            ),
            "x",
        )


def test_auc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 60), rng.integers(0, 9, 60).astype(float)
    pairs = [np.sign(a - b) for a in scores[labels == 1] for b in scores[labels == 0]]
    value, (low, high) = _auc.auc(labels, scores)
    assert (
        value == pytest.approx(np.mean([(sign + 1) / 2 for sign in pairs])) and low < value < high
    )
    assert scipy.stats.norm.ppf(0.975) * 0.04 < high - low < 0.4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": 2}, "label=2 must be a class, a whole number from 0 to 1"),
        ({"label": True}, "label=True must be a class"),
        ({"label": None}, "label=None"),
        ({"dense": [1.0]}, r"dense=\[1.0\] must be a list of 2 numbers .model.num_dense=2"),
        ({"dense": [1.0, float("nan")]}, "NaN is no JSON number"),
        ({"dense": [1.0, 1e300]}, r"dense\[1\]=1e\+300 must be a finite number"),
        ({"dense": [10**400, 1.0]}, r"dense\[0\]=1000.*\.\.\. must be a finite number"),
        ({"categorical": [0, 5]}, r"categorical\[1\]=5 must be a whole number from 0 to 4"),
        ({"pair": 3}, "pair=3 must be a text, not int"),
        ({"pair": "\ud800"}, "half a character"),
    ],
)
def test_bad_examples_end_in_one_line(scorer, example_rows, tmp_path, change, words):
    rows = example_rows(3)
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row | change) + "\n" for row in rows))
    with pytest.raises(UserError, match=f"line 1.*{words}|{words}"):
        data.split_data(scorer(data__source=f"text:{tmp_path}/b.jsonl"), held_out=False)


def test_long_examples_lose_their_start_and_are_counted(scorer, example_rows, tmp_path):
    row = example_rows(1)[0] | {"text": "x" * 40}
    (tmp_path / "b.jsonl").write_text(json.dumps(row) + "\n")
    windows = data.glob_data(scorer(), f"{tmp_path}/b.jsonl")
    assert (
        windows.truncated == 1
        and bytes(windows[0]["tokens"].astype(np.uint8)) == b"x" * 28 + b"\0a b"
    )


def test_scorer_fields_of_a_gpt_are_named(tiny):
    with pytest.raises(UserError, match="model.num_dense=2 is of scorers"):
        tiny(model__num_dense=2)


@pytest.mark.slow
def test_a_stream_trains_on_no_example_before_scoring_it(scorer, tmp_path, monkeypatch):
    """Of every example, the run reads it for an evaluation before it reads it for a step."""
    from matta_jax.training import _run

    config = scorer(
        data__stream=True, train__num_steps=7, train__eval_every=3, train__checkpoint_every=2
    )
    examples, events = data.split_data(config, held_out=False), []
    index_of = {examples[i]["tokens"].tobytes(): i for i in range(len(examples))}

    def recorded(kind, batch):
        events.extend((kind, index_of[row.tobytes()]) for row in np.asarray(batch["tokens"]))

    def wrapped(step, kind):
        return lambda first, batch: (recorded(kind, batch), step(first, batch))[1]

    make_train, make_eval = _run.make_train_steps, _run.make_eval_step

    def make_recorded(setup):
        step_at = make_train(setup)
        return lambda i: wrapped(step_at(i), "train")

    monkeypatch.setattr(_run, "make_train_steps", make_recorded)
    monkeypatch.setattr(_run, "make_eval_step", lambda setup: wrapped(make_eval(setup), "score"))
    train(config, tmp_path / "run", log=lambda _: None)
    steps = [i for kind, i in events if kind == "train"]
    assert steps == list(range(56))  # Once, in order.
    for i in range(56):
        assert events.index(("score", i)) < events.index(("train", i))
    assert all(i >= 56 for kind, i in events[-24:] if kind == "score")  # At the end: what is left.
    held_out = data.split_data(config, held_out=True)
    assert len(held_out) == len(examples) - 56
    with pytest.raises(
        UserError, match="train.num_steps=20 x data.batch_size=8 need 160 of the 160"
    ):
        train(scorer(data__stream=True, train__num_steps=20), tmp_path / "long")


@hypothesis.given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 5))
def test_windows_of_a_stream_cover_each_step_before_it(every, num_steps, size):
    config = c.from_dict(
        {
            "train": {"num_steps": num_steps, "eval_every": every},
            "optimizer": {"warmup_steps": 0},
            "data": {"batch_size": size, "seq_len": 8},
        }
    )
    scored = set()
    for step in range(num_steps):
        if step % every == 0:
            window = next_window(config, step)
            assert not scored & set(window)
            scored |= set(window)
        assert set(range(step * size, (step + 1) * size)) <= scored
    assert scored == set(range(num_steps * size))
