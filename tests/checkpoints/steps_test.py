"""A step is found by its folder, and an `@` in a name is no step."""

import pytest

from matta_jax.checkpoints import check_free, locate, saved_steps
from matta_jax.checkpoints._steps import step_number
from matta_jax.errors import UserError


def make_step(folder):
    folder.mkdir(parents=True)
    (folder / "_CHECKPOINT_METADATA").write_text("{}")


@pytest.fixture
def checkpoints(tmp_path):
    """A folder of two steps, and of what is none."""
    folder = tmp_path / "checkpoints"
    for step in ("3", "10"):
        make_step(folder / step)
    for name in ("9.tmp", "x", "6.orbax-checkpoint-tmp", "007", "²", "٣", "1" * 13, "9" * 30):
        make_step(folder / name)
    # An extracted model, an empty folder, a file.
    (folder / "9" / "weights").mkdir(parents=True)
    (folder / "8").mkdir()
    (folder / "7").write_text("")
    return folder


def test_what_is_no_step_is_not_listed(checkpoints, tmp_path):
    assert saved_steps(checkpoints) == [3, 10]
    assert saved_steps(tmp_path / "nowhere") == []


@pytest.mark.parametrize("name", ["7", "8", "9"])
def test_what_is_in_the_way_of_a_step_is_named(checkpoints, name):
    check_free(checkpoints, [3, 4, 10])
    with pytest.raises(UserError, match=f"checkpoints/{name}' is no checkpoint.*move it"):
        check_free(checkpoints, [4, int(name)])


@pytest.mark.parametrize(
    ("text", "step"),
    [("0", 0), ("007", 7), ("9" * 12, 10**12 - 1)]
    + [(text, None) for text in ("", "²", "٣", "-1", "+1", "1_0", " 1", "1.0", "1e3", "9" * 13)],
)
def test_a_step_is_a_few_plain_digits(text, step):
    assert step_number(text) == step


@pytest.mark.parametrize("name", ["w0", "team@lab/run", "run@5", "w0@²", "@x", "a@b@7", "run@"])
def test_an_at_sign_of_a_folder_is_its_own(tmp_path, name):
    for step in ("5", "7"):
        make_step(tmp_path / name / "checkpoints" / step)
    folder = tmp_path / name / "checkpoints"
    assert locate(str(tmp_path / name)) == (folder, 7)
    assert locate(tmp_path / name) == (folder, 7)
    assert locate(f"{tmp_path / name}@5") == (folder, 5)
    assert locate(f"{folder}@5") == (folder, 5)


def test_a_folder_comes_before_a_step(tmp_path):
    make_step(tmp_path / "run" / "checkpoints" / "5")
    make_step(tmp_path / "run@5" / "checkpoints" / "9")
    assert locate(f"{tmp_path}/run@5") == (tmp_path / "run@5" / "checkpoints", 9)


@pytest.mark.parametrize("step", ["4", "x", "", "²", "-5", "5.0", "5" * 5000])
def test_a_step_that_is_not_there_ends_in_one_line(tmp_path, step):
    make_step(tmp_path / "run" / "checkpoints" / "5")
    with pytest.raises(UserError, match=r"has no step '.*; steps: 5") as error:
        locate(f"{tmp_path}/run@{step}")
    assert "\n" not in str(error.value)
    assert ("at most 12 digits" in str(error.value)) == (step != "4")


@pytest.mark.parametrize("checkpoint", ["", " ", None, 5, b"run", ["run"]])
def test_a_checkpoint_is_a_name(checkpoint):
    with pytest.raises(UserError, match="must name the workdir of a run, as D or D@STEP"):
        locate(checkpoint)
