import contextlib
import json
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from matta_jax import config as c
from matta_jax import nesting, report, train
from matta_jax.checkpoints import Checkpoints, open_source
from matta_jax.errors import DamageError, DivergenceError, UserError
from matta_jax.sharding import make_mesh
from matta_jax.training import _loop, dry_run, make_setup, make_train_step
from matta_jax.training._loop import _Run
from matta_jax.training._metrics import step_flops_per_token

QUIET = lambda line: None

CHILD = """
import json, os, sys, time
sys.path.insert(0, sys.argv[4])
import conftest  # The same environment as the tests.
from matta_jax import config as c, train
real = os.rename
def slow(source, *rest, **kwargs):
    if sys.argv[3] in str(source):  # In mid-save: written, but not yet in its place.
        print("SAVING", source, flush=True)
        time.sleep(60)
    return real(source, *rest, **kwargs)
if sys.argv[3] != "-":
    os.rename = os.replace = slow
train(c.from_dict(json.loads(sys.argv[1])), sys.argv[2], log=lambda line: print(line, flush=True))
print("DONE", flush=True)
"""


def start(config, workdir, hold="-"):
    arguments = [
        json.dumps(c.to_dict(config)),
        str(workdir),
        hold,
        str(pathlib.Path(__file__).parents[1]),
    ]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_until(process, word):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if word in line:
            return lines
    raise AssertionError(f"{word!r} never came:\n" + "".join(lines))


def kill(process):
    process.kill()
    process.communicate()  # Closes the pipe.


def flip_a_bit(folder, piece):
    """Flips one of the bits of a piece of an array, wherever it is stored."""
    for file in folder.rglob("d/*"):
        content = bytearray(file.read_bytes())
        position = content.find(np.ascontiguousarray(piece).tobytes())
        if position >= 0:
            content[position + 5] ^= 1
            file.write_bytes(bytes(content))
            return
    raise AssertionError("the piece is nowhere")


def final_params(workdir, step):
    source = open_source(f"{workdir}@{step}")
    return source.load(source.nest.ta)


def assert_same_bits(a, b):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right))


def test_a_run_leaves_its_config_metrics_and_checkpoints(run):
    config, workdir, lines = run
    assert c.from_dict(json.loads((workdir / "config.json").read_text())) == config
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if "eval/student" in row] == [3, 6]
    first = rows[0]
    for name in (
        "student",
        "ta",
        "distill",
        "mix_0",
        "gap",
        "agreement",
        "grad_norm",
        "mfu",
        "tokens_per_second",
    ):
        assert np.isfinite(first[name]), name
    assert first["gap"] == pytest.approx(first["student"] - first["ta"], abs=1e-6)
    assert rows[-1]["eval/student"] < 5.3 < first["student"]
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        meta = checkpoints.meta(6)
    assert c.from_dict(meta["config"]) == config and meta["axes"]["embed/tokens"] == [
        "vocab",
        "d_model",
    ]
    assert any(
        "step 6/6 (100.0%)" in line and "tok/s MFU" in line and "ETA 0:00" in line for line in lines
    )


@pytest.mark.slow
def test_killed_anywhere_even_in_mid_save_a_run_ends_with_the_same_bits(tiny, run, tmp_path):
    config, whole, _ = run
    process = start(config, tmp_path / "killed", hold="6.orbax")
    read_until(process, "SAVING")  # In mid-save of the last step.
    kill(process)
    left = [path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()]
    assert "3" in left and "6" not in left and any("orbax-checkpoint-tmp" in name for name in left)
    process = start(config, tmp_path / "killed")
    read_until(process, "step 5/6")
    kill(process)  # Between two checkpoints.
    process = start(config, tmp_path / "killed")
    lines = read_until(process, "DONE")
    process.communicate()
    assert any("resumed from step 3" in line for line in lines)
    assert_same_bits(final_params(tmp_path / "killed", 6), final_params(whole, 6))
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(steps) and steps.count(4) == 1


@pytest.mark.slow
def test_sigterm_saves_and_ends_well(tiny, run, tmp_path):
    _config, _whole, _ = run
    long = tiny(train__num_steps=3000, train__checkpoint_every=2900, train__eval_every=2900)
    process = start(long, tmp_path / "stopped")
    read_until(process, "step 4/3000")
    process.send_signal(signal.SIGTERM)
    output = process.communicate()[0]
    assert process.returncode == 0 and "DONE" in output
    with Checkpoints(tmp_path / "stopped" / "checkpoints", read_only=True) as checkpoints:
        steps = checkpoints.steps
    assert len(steps) == 1 and 4 <= steps[0] < 2900


def test_resume_in_one_process_is_exact(tiny, run, tmp_path):
    config, whole, _ = run
    workdir = tmp_path / "again"
    os.makedirs(workdir)
    shutil.copytree(whole / "checkpoints" / "3", workdir / "checkpoints" / "3")
    shutil.copy(whole / "config.json", workdir)
    lines = []
    train(config, workdir, resume="must", log=lines.append)
    assert any("resumed from step 3" in line for line in lines)
    assert_same_bits(final_params(workdir, 6), final_params(whole, 6))


def test_free_fields_may_change_and_a_finished_run_is_left_alone(run):
    config, workdir, _ = run
    other = c.from_dict(c.to_dict(config) | {"mesh": {"data": 2, "fsdp": 2}})
    before = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    result = train(other, workdir, log=QUIET)
    assert result.finished and result.step == 6 and result.metrics["eval/student"] > 0
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == before
    (workdir / "config.json").write_text(json.dumps(c.to_dict(config)))


def test_another_config_is_refused_with_the_fields_that_differ(run, tiny):
    _, workdir, _ = run
    with pytest.raises(UserError) as error:
        train(tiny(optimizer__learning_rate=0.5, train__seed=3), workdir, log=QUIET)
    assert "optimizer.learning_rate: 0.01 -> 0.5; train.seed: 0 -> 3" in str(error.value)


def test_a_damaged_checkpoint_is_named_and_nothing_is_trained(run, tmp_path):
    config, whole, _ = run
    workdir = tmp_path / "damaged"
    shutil.copytree(whole, workdir)
    flip_a_bit(
        workdir / "checkpoints" / "6",
        open_source(str(run[1])).stored["embed"]["tokens"].whole()[:, :8],
    )
    with pytest.raises(
        UserError,
        match=r"checkpoints/6' is damaged: .*start again with --fallback, to go on from step 3",
    ) as error:
        train(config, workdir, log=QUIET)
    assert "\n" not in str(error.value)


DAMAGES = {
    "a flipped bit": (None, "differs from its fingerprint"),
    "a truncated file": (
        lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        "is damaged",
    ),
    "a missing file": (lambda file: file.unlink(), "is damaged"),
}


_SLOW_DAMAGES = [
    pytest.param(kind, marks=pytest.mark.slow) for kind in (*list(DAMAGES)[1:], "metadata missing")
]


@pytest.mark.parametrize("kind", ["a flipped bit", "metadata cut short", *_SLOW_DAMAGES])
def test_fallback_goes_on_from_the_newest_healthy_step(run, tmp_path, kind):
    config, whole, _ = run
    workdir = tmp_path / "damaged"
    shutil.copytree(whole, workdir)
    newest = workdir / "checkpoints" / "6"
    if kind == "a flipped bit":
        flip_a_bit(newest, open_source(str(whole)).stored["embed"]["tokens"].whole()[:, :8])
        words = DAMAGES[kind][1]
    elif kind in DAMAGES:
        change, words = DAMAGES[kind]
        for file in (newest / "params").rglob("d/*"):  # Not all of them are read.
            change(file)
    else:
        file, words = newest / "_CHECKPOINT_METADATA", "_CHECKPOINT_METADATA"
        file.unlink() if "missing" in kind else file.write_text(file.read_text()[:100])
    listed = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    with pytest.raises(
        DamageError, match=rf"{words}.*; start again with --fallback, to go on from step 3"
    ) as error:
        train(config, workdir, log=QUIET)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == listed
    lines = []
    train(config, workdir, fallback=True, log=lines.append)
    assert any("fallback: damaged step 6 is now" in line for line in lines)
    assert any("resumed from step 3" in line for line in lines)
    assert (workdir / "damaged" / "6").is_dir()
    assert_same_bits(final_params(workdir, 6), final_params(whole, 6))


def test_fallback_without_a_healthy_step_moves_nothing(run, tmp_path):
    config, whole, _ = run
    workdir = tmp_path / "damaged"
    shutil.copytree(whole, workdir)
    for step in ("3", "6"):
        (workdir / "checkpoints" / step / "_CHECKPOINT_METADATA").write_text("{")
    with pytest.raises(DamageError, match=r"every checkpoint of .* is damaged \(steps 3, 6\)"):
        train(config, workdir, fallback=True, log=QUIET)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["3", "6"]


def test_a_checkpoint_of_another_nest_is_refused(run, tiny, tmp_path):
    _, whole, _ = run
    shutil.copytree(whole / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(
        UserError, match=r"checkpoint 6 of .* is of another config \(nest.num_layers: 3 -> 4\)"
    ):
        train(tiny(nest__num_layers=4), tmp_path / "run", fallback=True, log=QUIET)


def test_resume_never_and_must(run, tiny, tmp_path):
    config, workdir, _ = run
    with pytest.raises(UserError, match="resume=never"):
        train(config, workdir, resume="never", log=QUIET)
    with pytest.raises(UserError, match="resume=must"):
        train(config, tmp_path / "none", resume="must", log=QUIET)
    assert not (tmp_path / "none").exists()


def test_changed_data_is_refused(tiny, run, tmp_path):
    _config, _whole, _ = run
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i}.txt").write_text(f"first text {i} " * 20)
    own = tiny(data__source=f"text:{folder}/*.txt")
    train(own, tmp_path / "run", log=QUIET)
    (folder / "3.txt").write_text("changed " * 20)
    with pytest.raises(UserError, match="has changed since checkpoint 6"):
        train(own, tmp_path / "run", log=QUIET)


@pytest.fixture
def poison(monkeypatch):
    """`poison(steps)`: batches of these steps hold ids beyond the vocabulary, which make loss and
    gradient NaN.
    """
    real = _loop.training_batches

    def poison(steps):
        @contextlib.contextmanager
        def opened(windows, *, start_step, **options):
            with real(windows, start_step=start_step, **options) as batches:
                yield (
                    {"tokens": batch["tokens"] + 10**6 * (step in steps), "length": batch["length"]}
                    for step, batch in enumerate(batches, start_step + 1)
                )

        monkeypatch.setattr(_loop, "training_batches", opened)

    return poison


def test_a_step_that_is_not_finite_is_skipped_and_counted(tiny, run, tmp_path, poison, caplog):
    poison({2, 5})
    result = train(tiny(train__max_skipped_steps=1), tmp_path / "run", log=QUIET)
    assert result.finished and result.metrics["eval/student"] < 5.3
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows if row.get("skipped_steps")] == [2, 5]
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert [
        record.getMessage() for record in caplog.records if "skipped" in record.getMessage()
    ] == [
        "loss=nan at step 2: the update is skipped",
        "loss=nan at step 5: the update is skipped",
    ]


def test_a_skipped_step_leaves_weights_and_optimiser_as_they_were(tiny):
    setup = make_setup(tiny(), make_mesh((1, 1, 1)))
    step = make_train_step(setup)
    batch = {"tokens": np.full((4, 33), 5, np.int32), "length": np.full(4, 32, np.int32)}
    state, metrics = step(setup.init(), batch)
    assert not metrics["skipped"]
    before = jax.tree.map(np.asarray, state)
    state, metrics = step(state, batch | {"tokens": batch["tokens"] + 10**6})
    assert metrics["skipped"] and not np.isfinite(metrics["loss"])
    assert_same_bits((state.params, state.opt_state), (before.params, before.opt_state))
    assert state.step == before.step + 1


def test_too_many_skipped_in_a_row_stop_the_run_and_name_the_last_good_checkpoint(
    tiny, tmp_path, poison
):
    poison({2, 4, 5})
    words = (
        r"loss=nan at step 5, the 2 updates .*max_skipped_steps=1: "
        r".*last good checkpoint: .*/checkpoints/3;"
    )
    with pytest.raises(DivergenceError, match=words):
        train(tiny(train__max_skipped_steps=1), tmp_path / "run", log=QUIET)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["3"]


def test_diverged_weights_are_not_saved(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(
        _Run, "evaluate", lambda self, state: {"eval/student": np.inf, "eval/ta": 1.0}
    )
    with pytest.raises(
        DivergenceError, match="eval/student=inf at step 3: .*not saved; last good checkpoint: none"
    ):
        train(tiny(), tmp_path / "run", log=QUIET)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.slow
def test_capacity_mismatch_warns_once(tiny, tmp_path, caplog, monkeypatch):
    real = _Run.account
    monkeypatch.setattr(
        _Run,
        "account",
        lambda self, step, metrics, waited: real(
            self, step, dict(metrics) | {"gap": np.float32(-0.1)}, waited
        ),
    )
    with caplog.at_level(logging.WARNING):
        train(tiny(), tmp_path / "run", log=QUIET)
    warnings = [
        record.getMessage()
        for record in caplog.records
        if "capacity mismatch" in record.getMessage()
    ]
    assert len(warnings) == 1 and "at step 2 the TA is no better" in warnings[0]


def test_a_lone_student_trains(tiny, tmp_path):
    alone = tiny(
        nest__num_layers=None,
        nest__d_model=None,
        nest__num_heads=None,
        nest__d_ff=None,
        nest__widths=[],
        train__num_steps=3,
    )
    result = train(alone, tmp_path / "run", log=QUIET)
    assert (
        set(result.metrics) == {"eval/student", "eval/agreement"}
        and result.metrics["eval/agreement"] == 1
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adafactor", "lion", "muon"])
def test_every_optimiser_trains_and_resumes(tiny, tmp_path, name):
    config = tiny(optimizer__name=name, train__num_steps=4, train__checkpoint_every=2)
    train(config, tmp_path / "run", log=QUIET)
    lines = []
    train(config, tmp_path / "run", log=lines.append)
    assert any("resumed from step 4" in line for line in lines)


@pytest.mark.slow
def test_shampoo_is_saved_on_eight_devices_continued_on_one_and_looked_at(tiny, tmp_path):
    fields = {
        "optimizer__name": "shampoo",
        "shampoo__block_size": 8,
        "shampoo__precondition_every": 2,
        "shampoo__start_step": 1,
        "model__num_heads": 2,
        "nest__num_heads": 4,
        "nest__d_model": 32,
        "data__batch_size": 8,
    }
    meshes = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
    one = train(tiny(**fields), tmp_path / "one", log=QUIET)
    train(tiny(**fields, **meshes), tmp_path / "many", log=QUIET)
    shutil.rmtree(tmp_path / "many" / "checkpoints" / "6")
    lines = []
    many = train(tiny(**fields), tmp_path / "many", log=lines.append)
    assert any("resumed from step 3" in line for line in lines)
    assert many.metrics == pytest.approx(one.metrics, rel=1e-3)
    metrics = [
        json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()
    ]
    assert metrics[0]["shampoo_failures"] == 0 and 0 < metrics[-2]["shampoo_residual"] < 0.1
    made = report(tmp_path / "many", weight="blocks/0/mlp/w_out", layer=1)
    assert (tmp_path / "many" / "preconditioners.png").stat().st_size > 1000
    text = (tmp_path / "many" / "report.md").read_text()
    assert (
        "## Preconditioners\n\nOf blocks/0/mlp/w_out, layer 1," in text
        and "| TA alone | R |" in text
        and made.files
    )
    for bad, words in (
        ({"weight": "blocks/0/mlp/w_on"}, "did you mean"),
        ({"layer": 9}, "layer=9 must be from 0 to 2"),
    ):
        with pytest.raises(UserError, match=words):
            report(tmp_path / "many", **bad)


@pytest.mark.slow
def test_tensorboard_is_written(tiny, tmp_path):
    train(tiny(train__tensorboard=True), tmp_path / "run", log=QUIET)
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_dry_run_tells_sizes_and_writes_nothing(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny(mesh__fsdp=4)
    text = dry_run(config)
    assert not list(tmp_path.iterdir())
    setup = make_setup(config, jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor")))
    counts = nesting.count(setup.abstract.params, setup.axes, setup.nest.ta, head_dim=8, seq_len=32)
    ta = next(line for line in text.splitlines() if line.startswith("ta "))
    assert f"{counts.parameters:,}" in ta
    parameters = next(line for line in text.splitlines() if line.startswith("parameters"))
    assert (
        float(parameters.split()[1]) < 0.5 * counts.bytes / 1e6
    )  # d_model weights are split over four devices.
    assert "wide" not in text.splitlines()[0] and "d_ff=48,16*2" in text and "temporaries" in text


def test_step_flops_share_the_trunk_of_a_prefix_student(tiny):
    config = tiny(nest__d_model=None, nest__num_heads=None, nest__d_ff=None, nest__widths=[])
    nest = nesting.nest_of(config)
    joint = step_flops_per_token(config, nest, [nest.student, nest.ta], 0, None)
    alone = step_flops_per_token(config, nest, [nest.ta], 0, None)
    assert joint == alone + 3 * 2 * config.model.vocab_size * config.model.d_model


def test_nothing_is_left_of_a_run_that_cannot_start(tiny, tmp_path):
    with pytest.raises(UserError, match="model.vocab_size=200"):
        train(tiny(model__vocab_size=200), tmp_path / "run", log=QUIET)
    with pytest.raises(UserError, match="matches no file"):
        train(tiny(data__source="text:/nowhere/*.txt"), tmp_path / "run", log=QUIET)
    with pytest.raises(UserError, match="mesh.fsdp=64 needs 64 devices, but there are 8"):
        train(tiny(mesh__fsdp=64), tmp_path / "run", log=QUIET)
    assert not (tmp_path / "run").exists()
