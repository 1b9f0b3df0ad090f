"""A run goes on to the same bits, and from no other run's files."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

from matta_jax import config as c
from matta_jax import report, tokenizers, train
from matta_jax.checkpoints import open_source
from matta_jax.errors import DamageError, DivergenceError, UserError
from matta_jax.training._held_out import HeldOut
from matta_jax.training._resume import check_workdir, has_checkpoint, with_own_tokenizer


def quiet(line):
    """Takes progress lines, and shows none."""


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


@pytest.mark.slow
def test_killed_anywhere_even_in_mid_save_a_run_ends_with_the_same_bits(
    run, tmp_path, start_child, final_params, assert_same_bits
):
    config, finished, _ = run
    child = start_child(config, tmp_path / "killed", hold="6.orbax")
    child.read_until("SAVING")  # In mid-save of the last step.
    child.kill()

    names = [path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()]
    assert "3" in names and "6" not in names
    assert any("orbax-checkpoint-tmp" in name for name in names)

    child = start_child(config, tmp_path / "killed")
    child.read_until("step 5/6")
    child.kill()  # Between two checkpoints.

    child = start_child(config, tmp_path / "killed")
    lines = child.read_until("DONE")
    child.read_to_end()
    assert any("resumed from step 3" in line for line in lines)
    assert_same_bits(final_params(tmp_path / "killed", 6), final_params(finished, 6))
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(steps) and steps.count(4) == 1


def test_resume_in_one_process_is_exact(run, tmp_path, final_params, assert_same_bits):
    config, finished, _ = run
    workdir = tmp_path / "again"
    os.makedirs(workdir)
    shutil.copytree(finished / "checkpoints" / "3", workdir / "checkpoints" / "3")
    shutil.copy(finished / "config.json", workdir)
    lines = []
    train(config, workdir, resume="must", log=lines.append)
    assert any("resumed from step 3" in line for line in lines)
    assert_same_bits(final_params(workdir, 6), final_params(finished, 6))


@pytest.mark.slow
def test_a_run_with_a_member_resumes_to_the_same_bits(
    tiny, tmp_path, final_params, assert_same_bits
):
    config = tiny(nest__members={"middle": "layers=2;d_ff=32"})
    first = train(config, tmp_path / "run", log=quiet)
    expected = final_params(tmp_path / "run", 6)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    lines = []
    again = train(config, tmp_path / "run", log=lines.append)
    assert any("resumed from step 3" in line for line in lines)
    assert again.metrics == first.metrics and "eval/members/middle" in again.metrics
    assert_same_bits(final_params(tmp_path / "run", 6), expected)
    other = tiny(nest__members={"middle": "layers=1;d_ff=32"})
    words = "nest.members: {'middle': 'layers=2;d_ff=32'} -> {'middle': 'layers=1;d_ff=32'}"
    with pytest.raises(UserError, match=words):
        train(other, tmp_path / "run", log=quiet)


@pytest.mark.slow
def test_free_fields_may_change_and_a_finished_run_is_left_alone(run):
    config, workdir, _ = run
    on_four_devices = c.from_dict(c.to_dict(config) | {"mesh": {"data": 2, "fsdp": 2}})
    before = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    result = train(on_four_devices, workdir, log=quiet)
    assert result.finished and result.step == 6 and result.metrics["eval/student"] > 0
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == before
    (workdir / "config.json").write_text(json.dumps(c.to_dict(config)))


def test_another_config_is_refused_with_the_fields_that_differ(run, tiny):
    _, workdir, _ = run
    with pytest.raises(UserError) as error:
        train(tiny(optimizer__learning_rate=0.5, train__seed=3), workdir, log=quiet)
    assert "optimizer.learning_rate: 0.01 -> 0.5; train.seed: 0 -> 3" in str(error.value)


def test_a_damaged_checkpoint_is_named_and_nothing_is_trained(run, tmp_path):
    config, finished, _ = run
    workdir = tmp_path / "damaged"
    shutil.copytree(finished, workdir)
    flip_a_bit(
        workdir / "checkpoints" / "6",
        open_source(str(run[1])).stored["embed"]["tokens"].whole()[:, :8],
    )
    with pytest.raises(
        UserError,
        match=r"checkpoints/6' is damaged: .*start again with --fallback, to go on from step 3",
    ) as error:
        train(config, workdir, log=quiet)
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
    pytest.param(kind, marks=pytest.mark.slow) for kind in (*DAMAGES, "metadata missing")
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["metadata cut short", *_SLOW_DAMAGES])
def test_fallback_goes_on_from_the_newest_healthy_step(
    run, tmp_path, kind, final_params, assert_same_bits
):
    config, finished, _ = run
    workdir = tmp_path / "damaged"
    shutil.copytree(finished, workdir)
    newest = workdir / "checkpoints" / "6"
    if kind == "a flipped bit":
        flip_a_bit(newest, open_source(str(finished)).stored["embed"]["tokens"].whole()[:, :8])
        words = DAMAGES[kind][1]
    elif kind in DAMAGES:
        change, words = DAMAGES[kind]
        for file in (newest / "params").rglob("d/*"):  # Not all of them are read.
            change(file)
    else:
        file, words = newest / "_CHECKPOINT_METADATA", "_CHECKPOINT_METADATA"
        file.unlink() if "missing" in kind else file.write_text(file.read_text()[:100])
    names = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    with pytest.raises(
        DamageError, match=rf"{words}.*; start again with --fallback, to go on from step 3"
    ) as error:
        train(config, workdir, log=quiet)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == names
    lines = []
    train(config, workdir, fallback=True, log=lines.append)
    assert any("fallback: damaged step 6 is now" in line for line in lines)
    assert any("resumed from step 3" in line for line in lines)
    assert (workdir / "damaged" / "6").is_dir()
    assert_same_bits(final_params(workdir, 6), final_params(finished, 6))


def test_fallback_without_a_healthy_step_moves_nothing(run, tmp_path):
    config, finished, _ = run
    workdir = tmp_path / "damaged"
    shutil.copytree(finished, workdir)
    for step in ("3", "6"):
        (workdir / "checkpoints" / step / "_CHECKPOINT_METADATA").write_text("{")
    with pytest.raises(DamageError, match=r"every checkpoint of .* is damaged \(steps 3, 6\)"):
        train(config, workdir, fallback=True, log=quiet)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["3", "6"]


def test_a_checkpoint_of_another_nest_is_refused(run, tiny, tmp_path):
    _, finished, _ = run
    shutil.copytree(finished / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(
        UserError, match=r"checkpoint 6 of .* is of another config \(nest.num_layers: 3 -> 4\)"
    ):
        train(tiny(nest__num_layers=4), tmp_path / "run", fallback=True, log=quiet)


def test_resume_never_and_must(run, tiny, tmp_path):
    config, workdir, _ = run
    with pytest.raises(UserError, match="resume=never"):
        train(config, workdir, resume="never", log=quiet)
    with pytest.raises(UserError, match="resume=must"):
        train(config, tmp_path / "none", resume="must", log=quiet)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_changed_data_is_refused(tiny, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i}.txt").write_text(f"first text {i} " * 20)
    config = tiny(data__source=f"text:{folder}/*.txt")
    train(config, tmp_path / "run", log=quiet)
    (folder / "3.txt").write_text("changed " * 20)
    with pytest.raises(UserError, match="has changed since checkpoint 6"):
        train(config, tmp_path / "run", log=quiet)


@pytest.mark.slow
def test_diverged_weights_are_not_saved(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(
        HeldOut, "evaluate", lambda self, state: {"eval/student": np.inf, "eval/ta": 1.0}
    )
    with pytest.raises(
        DivergenceError, match="eval/student=inf at step 3: .*not saved; last good checkpoint: none"
    ):
        train(tiny(), tmp_path / "run", log=quiet)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adafactor", "lion", "muon"])
def test_every_optimiser_trains_and_resumes(tiny, tmp_path, name):
    config = tiny(optimizer__name=name, train__num_steps=4, train__checkpoint_every=2)
    train(config, tmp_path / "run", log=quiet)
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
    one = train(tiny(**fields), tmp_path / "one", log=quiet)
    train(tiny(**fields, **meshes), tmp_path / "many", log=quiet)
    shutil.rmtree(tmp_path / "many" / "checkpoints" / "6")
    lines = []
    many = train(tiny(**fields), tmp_path / "many", log=lines.append)
    assert any("resumed from step 3" in line for line in lines)
    assert many.metrics == pytest.approx(one.metrics, rel=1e-3)
    metrics = [
        json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()
    ]
    # Rows of evaluations, and of what was found in the data, stand between.
    steps = [row for row in metrics if "loss" in row]
    assert steps[0]["shampoo_failures"] == 0 and 0 < steps[-1]["shampoo_residual"] < 0.1
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
@pytest.mark.parametrize("damage", ["", "[]", '{"loss": NaN}'])
def test_a_run_goes_on_whatever_its_metrics_file_holds(run, tmp_path, damage):
    config, finished, _ = run
    shutil.copytree(finished, tmp_path / "run")
    for step in ("3", "6"):
        (tmp_path / "run" / "checkpoints" / step / "metrics" / "metrics").write_text(damage)
    lines = []
    assert train(config, tmp_path / "run", log=lines.append).finished
    assert any("resumed from step 6" in line for line in lines)


def test_what_lies_in_the_way_of_a_coming_step_is_named_before_the_first(tiny, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    for name in ("6", "5", "9", "x", "9" * 30):
        (folder / name / "weights").mkdir(parents=True)
    with pytest.raises(UserError, match="checkpoints/6' is no checkpoint, and in the way of"):
        check_workdir(tiny(), tmp_path / "run", "auto")
    (folder / "6").rename(folder / "kept")
    check_workdir(tiny(), tmp_path / "run", "auto")
    assert not has_checkpoint(tmp_path / "run")


@pytest.mark.slow
def test_a_longer_run_is_exact_or_says_what_jumps(tiny, tmp_path, final_params, assert_same_bits):
    steady = {"optimizer__schedule": "constant", "objective__ramp_shape": "constant"}
    train(tiny(**steady), tmp_path / "whole", log=quiet)
    train(tiny(train__num_steps=3, **steady), tmp_path / "longer", log=quiet)
    train(tiny(**steady), tmp_path / "longer", log=quiet)
    assert_same_bits(final_params(tmp_path / "longer", 6), final_params(tmp_path / "whole", 6))


@pytest.mark.slow
def test_a_cosine_run_is_longer_with_extend_alone(run, tiny, tmp_path):
    shutil.copytree(run[1], tmp_path / "run")
    longer = tiny(train__num_steps=7)
    with pytest.raises(UserError, match="train.num_steps: 6 -> 7, with .*--extend takes this"):
        train(longer, tmp_path / "run", log=quiet)
    lines = []
    result = train(longer, tmp_path / "run", extend=True, log=lines.append)
    assert result.finished and result.step == 7
    assert any("the learning rate at step 6 goes from" in line for line in lines)
    with pytest.raises(UserError, match="train.num_steps: 7 -> 5, but step 7 is saved"):
        train(tiny(train__num_steps=5), tmp_path / "run", extend=True, log=quiet)


@pytest.fixture
def begun(tiny, tmp_path):
    """`begun(bundled, saved)`: the config and workdir of a run whose tokenizer is in
    `tmp_path/tok.json`, with its own copy, with a checkpoint that tells its digest, or with both.
    """
    file = tmp_path / "tok.json"
    file.write_text('{"model": 1}')
    config = tiny(data__tokenizer=f"hf:{file}")
    workdir = tmp_path / "run"

    def make(bundled, saved):
        described = c.to_dict(config)
        workdir.mkdir()
        (workdir / "config.json").write_text(json.dumps(described))
        if bundled:
            tokenizers.bundle_tokenizer(config.data.tokenizer, workdir)
        if saved:
            digest = tokenizers.files_digest(config.data.tokenizer)
            meta = {"config": described, "fingerprints": {}, "units": {}, "tokenizer": digest}
            text = json.dumps({"custom_metadata": meta})
            (workdir / "checkpoints" / "3").mkdir(parents=True)
            (workdir / "checkpoints" / "3" / "_CHECKPOINT_METADATA").write_text(text)
        return config, workdir

    return make


def resumed(config, workdir, tokenizer, log=quiet):
    """The tokenizer that a run goes on with, whose command names another one."""
    data = dataclasses.replace(config.data, tokenizer=tokenizer)
    config = with_own_tokenizer(dataclasses.replace(config, data=data), workdir, log)
    check_workdir(config, workdir, "must")
    return config.data.tokenizer


@pytest.mark.parametrize(("bundled", "saved"), [(True, False), (False, True), (True, True)])
def test_a_tokenizer_is_known_by_its_files_and_not_by_its_path(begun, tmp_path, bundled, saved):
    config, workdir = begun(bundled, saved)
    spec = config.data.tokenizer
    assert resumed(config, workdir, spec) == spec
    # The same files elsewhere.
    (tmp_path / "moved.json").write_text('{"model": 1}')
    moved = f"hf:{tmp_path}/moved.json"
    own = f"hf:{workdir}/tokenizer/tok.json"
    assert resumed(config, workdir, moved) == (own if bundled else moved)
    # Other files elsewhere, or in the same place; or of another kind.
    for file in ("moved.json", "tok.json"):
        (tmp_path / file).write_text('{"model": 2}')
        with pytest.raises(UserError, match="data.tokenizer") as error:
            resumed(config, workdir, f"hf:{tmp_path}/{file}")
        assert "set these fields back" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="data.tokenizer: 'hf:.*' -> 'byte'"):
        resumed(config, workdir, "byte")


def test_a_run_whose_tokenizer_is_gone_goes_on_with_its_copy(begun, tmp_path):
    config, workdir = begun(bundled=True, saved=True)
    (tmp_path / "tok.json").unlink()
    lines = []
    own = resumed(config, workdir, config.data.tokenizer, lines.append)
    assert own == f"hf:{workdir}/tokenizer/tok.json" and "is missing: the run goes on" in lines[0]
    # And again, when the copy stands in the config, and when the run lies elsewhere.
    described = json.loads((workdir / "config.json").read_text())
    described["data"]["tokenizer"] = own
    (workdir / "config.json").write_text(json.dumps(described))
    workdir = workdir.rename(tmp_path / "moved")
    again = resumed(config, workdir, config.data.tokenizer)
    assert again == f"hf:{workdir}/tokenizer/tok.json"
    with pytest.raises(UserError, match="data.tokenizer"):
        resumed(config, workdir, f"hf:{tmp_path}/none.json")
