"""Healing: a model that trains on by itself, in its TA or out of it."""

import dataclasses
import json
import shutil
import types

import numpy as np
import pytest

from matta_jax import config as c
from matta_jax import extract, heal, optim, packages, starts
from matta_jax.checkpoints import open_source
from matta_jax.errors import UserError
from matta_jax.models import apply
from matta_jax.training import Healing, TrainResult, _heal, _loop

STEPS = 2


def extracted(run, spec, output, **packaging):
    [model] = extract(str(run[1]), [spec], output, packaging=packages.Packaging(**packaging))
    return model.path


def healed(model, output, **healing):
    return heal(str(model), output, Healing(**{"steps": STEPS} | healing), log=lambda line: None)


def hidden_of(folder):
    model = packages.load_model(folder)
    tokens = np.random.default_rng(0).integers(0, 256, (2, 20))
    return np.asarray(apply(model.architecture, model.params, {"tokens": tokens}))


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_member_is_healed_in_its_ta_as_it_is_alone(run, tmp_path):
    """From the TA's checkpoint, or from the part of the optimiser state that was extracted."""
    inside = healed(extracted(run, "student", tmp_path / "a"), tmp_path / "in_ta")
    alone = healed(
        extracted(run, "student", tmp_path / "b", with_optimizer=True), tmp_path / "alone"
    )
    before, first, second = map(hidden_of, (tmp_path / "a", inside.path, alone.path))
    np.testing.assert_allclose(first, second, atol=1e-4)
    assert not np.allclose(first, before, atol=1e-2)


@pytest.mark.slow
def test_a_mix_trains_by_itself_and_can_be_healed_again(run, tmp_path):
    model = healed(extracted(run, "d_ff=48,16,48", tmp_path / "mix"), tmp_path / "healed")
    assert packages.open_model(model.path).architecture.along("d_ff") == (48, 16, 48)
    assert model.max_difference == 0
    rows = [row for row in rows_of(tmp_path / "healed.run") if "loss" in row]
    assert rows and all(row["loss"] == row["members/healed"] for row in rows)
    assert not any("ta" in row or "student" in row for row in rows)

    again = healed(model.path, tmp_path / "again")
    assert packages.open_model(again.path).manifest["parent"]["step"] == 6 + 2 * STEPS


def test_a_member_of_the_users_may_have_the_name_of_healed_ones(run):
    source = open_source(str(run[1]))
    nest = dataclasses.replace(source.config.nest, members={"healed": "d_ff=32"})
    source = dataclasses.replace(source, config=dataclasses.replace(source.config, nest=nest))
    for spec, name in {"d_ff=16": "healed_", "d_ff=32": "healed", "healed": "healed"}.items():
        package = types.SimpleNamespace(manifest={"spec": spec})
        config, member = _heal._alone_in_its_ta(source, package)
        assert member == name and config.nest.members["healed"] == "d_ff=32"
        assert [m for m in config.nest.members if config.objective.weights_of(m)[0]] == [name]


@pytest.mark.parametrize(
    ("schedule", "step", "rates"),
    [
        ("constant", 60, (1.0, 0.55, 0.1)),
        ("wsd", 60, (1.0, 0.55, 0.1)),
        ("wsd", 100, (0.1, 0.055, 0.01)),
        ("cosine", 60, None),
    ],
)
def test_a_model_of_a_rate_that_has_not_decayed_gets_a_decay_of_its_own(schedule, step, rates):
    config = c.override(
        c.Config(),
        {
            "optimizer.schedule": schedule,
            "optimizer.learning_rate": 1.0,
            "optimizer.warmup_steps": 0,
            "train.num_steps": 100,
        },
    )
    tuned = Healing(20).apply(config, step)
    assert tuned.train.num_steps == step + 20
    reached = optim.make_schedule(tuned.optimizer, tuned.train.num_steps)
    if rates is None:
        assert tuned.optimizer.learning_rate == 0.5 and float(reached(step)) < 0.2
    else:
        assert [float(reached(step + k)) for k in (0, 10, 20)] == pytest.approx(rates)


@pytest.mark.slow
def test_another_rate_and_text_are_taken(run, corpus, tmp_path):
    model = extracted(run, "d_ff=32", tmp_path / "m")
    healed(model, tmp_path / "h", learning_rate=0.5, source=corpus, eval_source=corpus)
    config = json.loads((tmp_path / "h.run" / "config.json").read_text())
    assert config["optimizer"]["learning_rate"] == 0.5
    assert config["data"]["source"] == config["data"]["eval_source"] == corpus


def test_what_cannot_be_healed_is_one_line_and_nothing_is_written(run, tmp_path):
    model = extracted(run, "d_ff=32", tmp_path / "m")
    exported = extracted(run, "ta", tmp_path / "hf", format="hf")
    foreign = starts.import_hf(exported, tmp_path / "foreign", tokenizer="byte")
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match="was imported, and has no run.*matta-train --init_from"):
        healed(foreign.path, tmp_path / "h")
    with pytest.raises(UserError, match="steps=0 must be at least 1"):
        healed(model, tmp_path / "h", steps=0)
    with pytest.raises(UserError, match="--overwrite"):
        healed(model, tmp_path / "foreign")

    assert set(tmp_path.iterdir()) == before


def test_a_model_whose_run_is_gone_or_another_one_is_one_line(run, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(run[1], workdir)
    model = extracted((None, workdir), "d_ff=32", tmp_path / "m")
    open_source = _heal.open_source
    monkeypatch.setattr(
        _heal,
        "open_source",
        lambda text: dataclasses.replace(open_source(text), fingerprint="other"),
    )
    with pytest.raises(UserError, match="is part of other weights than .*@6 now holds; extract it"):
        healed(model, tmp_path / "h")
    monkeypatch.undo()
    shutil.rmtree(workdir)
    with pytest.raises(UserError, match="a run that cannot be read .*--with_optimizer"):
        healed(model, tmp_path / "h")
    assert {path.name for path in tmp_path.iterdir()} == {"m"}


def test_a_healing_that_was_stopped_extracts_nothing(run, tmp_path, monkeypatch):
    model = extracted(run, "d_ff=32", tmp_path / "m")
    cut_off = TrainResult(tmp_path / "h.run", 7, finished=False, metrics={})
    monkeypatch.setattr(_loop, "train", lambda *args, **kwargs: cut_off)
    with pytest.raises(UserError, match="training was stopped at step 7; start the same command"):
        healed(model, tmp_path / "h")
    assert not (tmp_path / "h").exists()
