"""Where models are written: what is there stays, unless it is to be replaced."""

import os
import pathlib
import shutil

import pytest

import matta_jax
from matta_jax import extract, packages
from matta_jax.errors import UserError
from matta_jax.packages import Packaging, _formats

FILES = {
    "hf": ["config.json", "model.safetensors"],
    "safetensors": ["model.safetensors"],
    "orbax": ["weights"],
}


@pytest.fixture(params=["extract", "import_hf", "convert"])
def write(request, run, models):
    """Writes the Student, in one of the three ways."""

    def call(output, **packaging):
        how = Packaging(**packaging)
        if request.param == "extract":
            return extract(str(run[1]), ["student"], output, packaging=how)
        if request.param == "convert":
            return matta_jax.convert(models("safetensors")["student"], output, packaging=how)
        return matta_jax.import_hf(models("hf")["student"], output, tokenizer="byte", packaging=how)

    return call


def test_what_exists_is_left_alone(refused, models, write, place):
    (place / "empty").mkdir()
    (place / "mine").mkdir()
    (place / "mine" / "text").write_text("mine")
    (place / "file").write_text("mine")
    shutil.copytree(models()["ta"], place / "model")
    for name in ("empty", "mine", "file", "model"):
        with refused("exists; name another folder, remove it, or give --overwrite", place):
            write(place / name)
    for name in ("empty", "mine", "file"):
        with refused("is not an extracted model, and is not overwritten", place):
            write(place / name, overwrite=True)


def test_overwrite_replaces_a_model_and_nothing_else_is_left(
    weights, assert_same_bits, models, write, place
):
    expected = weights(models()["student"])
    shutil.copytree(models()["ta"], place / "model")
    for format in ("hf", "safetensors", "orbax"):
        write(place / "model", overwrite=True, format=format)
        assert_same_bits(weights(place / "model"), expected)
        assert [path.name for path in place.iterdir()] == ["model"]
        names = ["README.md", "manifest.json", *FILES[format]]
        assert sorted(path.name for path in (place / "model").iterdir()) == sorted(names)


def test_what_is_ours_is_not_written_into(refused, models, write, place):
    run = place / "run"
    (run / "checkpoints" / "3").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    shutil.copytree(models()["ta"], place / "model")
    in_checkpoints = "is in the checkpoints of the run '.*/run', which it would spoil; name another"
    words = {
        "run": "is the workdir of a run",
        "run/config.json": "is a file of the run",
        "run/metrics.jsonl": "is a file of the run",
        "run/checkpoints": in_checkpoints,
        "run/checkpoints/9": in_checkpoints,
        "run/checkpoints/3/x/y": in_checkpoints,
        "run/models/../checkpoints/9": in_checkpoints,
        "model/x": "is in the folder of the model '.*/model'",
        "model/weights/x": "is in the folder of the model '.*/model'",
    }
    for name, reason in words.items():
        for overwrite in (False, True):
            with refused(reason, place):
                write(place / name, overwrite=overwrite)
    write(run / "models" / "student")
    # A run may go on in its folder, and lie in no other's.
    for name, reason in (words | {"model": "in the folder of the model"}).items():
        if name.startswith(("run/checkpoints", "run/models", "model")):
            with pytest.raises(UserError, match=f"workdir=.*{reason}"):
                packages.check_workdir_place(place / name)
    for name in ("run", "run/more", "new"):
        packages.check_workdir_place(place / name)


def test_a_full_disk_is_one_line_and_nothing_is_left(refused, write, place, monkeypatch):
    def fill(*_, **__):
        raise ValueError("DATA_LOSS: Error writing 'weights': No space left on device [os='28']")

    monkeypatch.setattr(_formats, "save_folder", fill)
    with refused(r"output='.*/model' cannot be written .No space left on device.; name", place):
        write(place / "model")


NEEDS = "with_optimizer needs format=orbax and dtype=fp32"
UNKNOWN = (
    (
        {"format": "safetensor"},
        "format='safetensor' must be one of orbax, safetensors, hf, .*; did you mean",
    ),
    ({"format": ""}, "format='' must be one of"),
    ({"dtype": "fp16"}, "dtype='fp16' must be one of fp32, bf16"),
    ({"with_optimizer": True, "format": "hf"}, NEEDS),
    ({"with_optimizer": True, "format": "safetensors"}, NEEDS),
    ({"with_optimizer": True, "dtype": "bf16"}, NEEDS),
)


def test_unknown_formats_and_types_and_optimiser_states_without_a_run_are_refused(
    refused, write, place
):
    for packaging, words in UNKNOWN:
        with refused(words, place):
            write(place / "model", **packaging)


def test_a_failed_replacement_leaves_the_old_model(refused, models, place, monkeypatch):
    shutil.copytree(models()["student"], place / "model")
    real = os.rename

    def fail(source, target):
        if pathlib.Path(target) == place / "model" and not str(source).endswith(".old"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with refused("No space left on device", place):
        packaging = packages.Packaging("safetensors", overwrite=True)
        matta_jax.convert(models()["ta"], place / "model", packaging=packaging)
