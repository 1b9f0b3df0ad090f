"""A run that learns from a frozen Teacher: online and by its labels, alike."""

import json
import shutil

import jax
import numpy as np
import pytest

from matta_jax import data, models, packages, train
from matta_jax.sharding import make_mesh, place_batch
from matta_jax.training import _state, _step

TAUGHT = {"teacher__student_weight": 0.7, "teacher__ta_weight": 0.3}


@pytest.fixture
def step_of(training_windows):
    """`step_of(config, sizes)`: weights and metrics of one step on fixed windows."""

    def run_step(config, sizes=(1, 1, 1)):
        setup = _state.make_setup(config, make_mesh(sizes))
        windows = training_windows(config)
        if config.teacher.labels:
            windows = data.LabelledWindows(windows, data.Labels(config.teacher.labels))
        rows = [windows[i] for i in (5, 0, len(windows) - 1, 2)]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        teacher = [] if setup.teacher is None else [setup.load_teacher()]
        state, metrics = _step.make_train_step(setup)(
            setup.init(), place_batch(batch, setup.mesh), *teacher
        )
        return state, jax.device_get(metrics)

    return run_step


@pytest.mark.slow
def test_online_is_offline_with_all_ids(tiny, teacher, labels, step_of):
    online, seen = step_of(tiny(teacher__model=teacher, teacher__temperature=2.0, **TAUGHT))
    offline, other = step_of(tiny(teacher__labels=labels(256), teacher__temperature=2.0, **TAUGHT))
    for name in ("teacher_student", "teacher_ta", "loss", "grad_norm"):
        assert other[name] == pytest.approx(seen[name], rel=2e-3), name  # Labels are float16.
    for a, b in zip(jax.tree.leaves(online.params), jax.tree.leaves(offline.params), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-3)
    fewer = step_of(tiny(teacher__labels=labels(8), teacher__temperature=2.0, **TAUGHT))[1]
    assert (
        0 < fewer["teacher_student"] < seen["teacher_student"]
    )  # Merging ids can only lower a divergence.


@pytest.mark.slow
def test_the_teachers_terms_are_their_formula(tiny, teacher, step_of, training_windows):
    config = tiny(teacher__model=teacher, teacher__temperature=2.0, nest__mix_per_step=0, **TAUGHT)
    metrics = step_of(config)[1]
    setup = _state.make_setup(config, make_mesh((1, 1, 1)))
    windows, model = training_windows(config), packages.load_model(teacher)
    rows = [windows[i] for i in (5, 0, len(windows) - 1, 2)]
    tokens = np.stack([row["tokens"] for row in rows])
    counted = (np.arange(32) < np.stack([row["length"] for row in rows])[:, None]).reshape(-1)
    q = np.asarray(jax.nn.log_softmax(model.logits(model.params, tokens[:, :-1]) / 2), np.float64)
    params = setup.init().params
    for name, end in (("student", setup.nest.student), ("ta", setup.nest.ta)):
        inputs = {"tokens": tokens[:, :-1]}
        hidden = models.sub_model_apply(setup.plan, params, inputs, end)
        logits = models.logits(hidden, setup.plan.table(params))
        p = np.asarray(jax.nn.log_softmax(logits / 2), np.float64)
        kl = 4 * (np.exp(q) * (q - p)).sum(-1)
        assert metrics[f"teacher_{name}"] == pytest.approx(
            (kl * counted).sum() / counted.sum(), rel=1e-4
        )
    whole = (
        metrics["student"]
        + metrics["ta"]
        + 0.7 * metrics["teacher_student"]
        + 0.3 * metrics["teacher_ta"]
    )
    assert metrics["loss"] == pytest.approx(whole, rel=1e-5)


@pytest.mark.slow
def test_task_labels_of_the_teacher(tiny, teacher, labels, step_of):
    online, offline = (
        step_of(tiny(teacher__task_labels="teacher", **field))[1]
        for field in (
            {"teacher__model": teacher},
            {"teacher__labels": labels(8), "teacher__temperature": 2.0},
        )
    )
    truth = step_of(tiny())[1]
    assert online["student"] == pytest.approx(offline["student"], rel=1e-4)
    assert abs(online["student"] - truth["student"]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 2, 1), (1, 2, 2)])
def test_on_a_mesh_it_teaches_the_same(tiny, teacher, labels, step_of, sizes):
    for field in ({"teacher__model": teacher}, {"teacher__labels": labels(8)}):
        fields = {
            "teacher__temperature": 2.0,
            "model__num_heads": 4,
            "nest__num_heads": 6,
            **TAUGHT,
            **field,
        }
        mesh = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), sizes, strict=True))
        alone, spread = step_of(tiny(**fields))[1], step_of(tiny(**fields, **mesh), sizes)[1]
        for name in ("teacher_student", "teacher_ta", "loss", "grad_norm"):
            assert spread[name] == pytest.approx(alone[name], rel=2e-4), (field, name)


@pytest.mark.slow
def test_a_run_learns_from_it_and_resumes(tiny, teacher, labels, tmp_path):
    for name, field in (
        ("on", {"teacher__model": teacher}),
        ("off", {"teacher__labels": labels(8)}),
    ):
        config = tiny(teacher__temperature=2.0, train__microbatches=2, **TAUGHT, **field)
        shown: list[str] = []
        whole = train(config, tmp_path / name, log=shown.append)
        assert any(
            "teacher_student" in line and "teacher_ta" in line
            for line in shown
            if "grad_norm" in line
        )
        lines = [
            json.loads(line)
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        assert all("teacher_student" in line for line in lines if "loss" in line)
        assert whole.finished and "eval/teacher_student" not in whole.metrics
        shutil.rmtree(tmp_path / name / "checkpoints" / "6")
        again = train(config, tmp_path / name, log=lambda _: None)
        assert again.metrics == whole.metrics
