"""The road in one call goes by the run's own models alone, and says what it cannot do first."""

import json
import shutil

import pytest

from matta_jax import _quickstart, extract, packages, quickstart
from matta_jax.checkpoints import open_source
from matta_jax.errors import UserError
from matta_jax.nesting import slug

SPECS = ["student", "d_ff=16,48,32"]


@pytest.fixture(scope="module")
def models(run, tmp_path_factory):
    """A folder of the run's models, to be copied."""
    folder = tmp_path_factory.mktemp("quickstart") / "models"
    extract(str(run[1]), SPECS, folder)
    return folder


@pytest.fixture
def extracted_again(run, models, tmp_path):
    """`extracted_again(change)`: the lines of the log when models are missing or changed."""

    def extracted(change):
        target = tmp_path / "models"
        shutil.copytree(models, target)
        change(target)
        lines = []
        folders = [target / slug(spec) for spec in SPECS]
        _quickstart._extract_missing(run[1], SPECS, folders, lines.append)
        for spec, folder in zip(SPECS, folders, strict=True):
            package = packages.open_model(folder)
            assert package.manifest["spec"] == spec
            assert package.manifest["parent"]["step"] == 6
            package.load()
        return lines

    return extracted


def test_models_of_the_newest_checkpoint_are_kept(extracted_again):
    assert extracted_again(lambda target: None) == []


def change_manifest(target, change):
    file = target / "student" / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(packages.sealed(manifest)))


def another_spec(target):
    shutil.rmtree(target / "student")
    shutil.copytree(target / slug(SPECS[1]), target / "student")


def another_step(target):
    change_manifest(target, lambda manifest: manifest["parent"].update(step=3))


def another_training(target):
    change_manifest(target, lambda manifest: manifest["parent"].update(fingerprint="ab"))


def damaged_manifest(target):
    (target / "student" / "manifest.json").write_text("{}")


def damaged_weights(target):
    for file in (target / "student").rglob("*"):
        if file.is_file() and file.suffix not in (".json", ".md"):
            file.write_bytes(b"")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (another_spec, "it is d_ff=16,48,32"),
        (another_step, "it is of another checkpoint, step 3"),
        (another_training, "it is of another checkpoint, step 6"),
        (damaged_manifest, "is damaged"),
        (damaged_weights, ""),
    ],
)
def test_what_is_not_the_runs_model_is_extracted_again(extracted_again, change, words):
    first, second = extracted_again(change)
    assert first.startswith("student is extracted again: ") and words in first
    assert second.startswith("extracted student")


def test_a_folder_that_is_no_model_is_left_alone(extracted_again):
    def mine(target):
        (target / "student" / "manifest.json").unlink()

    with pytest.raises(UserError, match="is not an extracted model, and is not overwritten"):
        extracted_again(mine)


def test_a_checkpoint_is_told_by_its_weights(run):
    assert open_source(str(run[1])).fingerprint != open_source(f"{run[1]}@3").fingerprint


@pytest.mark.parametrize(
    ("sub_models", "words"),
    [
        ([], "must be a list of specs"),
        ("student", "must be a list of specs"),
        (["student", "d_ff=20"], "d_ff"),
        (["student", "ta", "student"], "'student' and 'student' are one sub-model; drop one"),
        (["ta", "layers=3"], "'ta' and 'layers=3' are one sub-model"),
    ],
)
def test_sub_models_are_checked_before_the_training(tiny, tmp_path, sub_models, words):
    with pytest.raises(UserError, match=words) as error:
        quickstart(tiny(), tmp_path / "run", sub_models=sub_models)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
