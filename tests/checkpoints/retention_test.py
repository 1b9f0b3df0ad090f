"""Whatever is damaged in one step, the others are kept, found and read."""

import errno
import os
import shutil

import jax
import jax.numpy as jnp
import pytest

from matta_jax import checkpoints
from matta_jax.checkpoints import _orbax
from matta_jax.errors import DamageError, UserError

WEIGHT = jnp.arange(24, dtype=jnp.float32).reshape(4, 6)


def abstract(tree):
    return checkpoints.on_one_device(jax.eval_shape(lambda: tree))


DAMAGES = {
    "emptied": lambda file: file.write_bytes(b""),
    "another JSON": lambda file: file.write_text("[]"),
    "a number that is none": lambda file: file.write_text('{"loss": NaN, "custom_metadata": 1}'),
    "nested too deep": lambda file: file.write_text("[" * 200_000),
    "gone": lambda file: file.unlink(),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """The checkpoints of steps 1 and 2, the first of which has the lower loss."""
    path = tmp_path_factory.mktemp("two") / "checkpoints"
    save_steps(path, {1: 2.0, 2: 3.0})
    return path


def save_steps(path, losses, keep=2):
    with checkpoints.Checkpoints(path, keep=keep) as saved:
        for step, loss in losses.items():
            meta = {"config": {}, "evaluation": {"eval/student": loss}}
            saved.save(step, {"params": {"w": WEIGHT + step}}, meta, loss=loss)


def is_exact(saved, step):
    restored = saved.restore(step, {"params": abstract({"w": WEIGHT})})["params"]["w"]
    return bool((restored == WEIGHT + step).all())


@pytest.mark.slow
def test_whatever_file_is_emptied_the_line_names_it_or_the_state_is_exact(
    two_steps, tmp_path, monkeypatch
):
    monkeypatch.setattr(_orbax, "_RELEASE_PAUSES", 1)
    outcomes = []
    for index, file in enumerate(sorted(f for f in (two_steps / "2").rglob("*") if f.is_file())):
        path = tmp_path / str(index)
        shutil.copytree(two_steps, path)
        (path / file.relative_to(two_steps)).write_bytes(b"")
        with checkpoints.Checkpoints(path) as saved:
            assert saved.steps == [1, 2] and is_exact(saved, 1)
            try:
                assert is_exact(saved, 2)
                outcomes.append("exact")
            except DamageError as error:
                assert f"checkpoint '{path}/2'" in str(error) and "\n" not in str(error)
                outcomes.append("damaged")
                saved.set_aside(2)
                assert saved.steps == [1]
    assert set(outcomes) == {"exact", "damaged"}


@pytest.mark.parametrize("name", ["metrics/metrics", "_CHECKPOINT_METADATA"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_metrics_or_documents_leave_the_other_steps_alone(
    two_steps, tmp_path, name, damage
):
    path = tmp_path / "checkpoints"
    shutil.copytree(two_steps, path)
    DAMAGES[damage](path / "2" / name)
    if name == "metrics/metrics":
        DAMAGES[damage](path / "1" / name)
    # A reader, and a writer that goes on.
    assert checkpoints.locate(f"{path}@1") == (path, 1)
    assert is_exact(checkpoints.Checkpoints(path, read_only=True), 1)
    save_steps(path, {4: 9.0, 5: 8.0}, keep=1)
    assert {1, 5} <= set(checkpoints.saved_steps(path))


def test_the_loss_of_a_step_is_that_of_its_document(two_steps, tmp_path):
    path = tmp_path / "checkpoints"
    shutil.copytree(two_steps, path)
    (path / "2" / "metrics" / "metrics").write_text('{"loss": 0.0}')
    save_steps(path, {4: 9.0}, keep=1)
    assert checkpoints.saved_steps(path) == [1, 4]


def test_a_model_among_the_checkpoints_is_neither_counted_nor_removed(two_steps, tmp_path):
    path = tmp_path / "checkpoints"
    shutil.copytree(two_steps, path)
    (path / "9" / "weights").mkdir(parents=True)
    save_steps(path, {4: 1.0, 5: 9.0}, keep=1)
    assert checkpoints.saved_steps(path) == [4, 5] and (path / "9" / "weights").is_dir()
    with pytest.raises(UserError, match="checkpoints/9' is no checkpoint, and in the way of"):
        save_steps(path, {9: 1.0})


def test_a_save_that_fails_in_the_background_leaves_no_step(two_steps, tmp_path, monkeypatch):
    path = tmp_path / "checkpoints"
    shutil.copytree(two_steps, path)
    rename = os.rename

    def full(source, target, **keywords):
        if "4.orbax" in str(source):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target, **keywords)

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(Exception, match="No space left on device"):
        save_steps(path, {4: 1.0})
    monkeypatch.undo()
    assert checkpoints.saved_steps(path) == [1, 2]
    # What is left of it is no hindrance to the next try.
    save_steps(path, {4: 1.0})
    assert checkpoints.saved_steps(path)[-1] == 4
