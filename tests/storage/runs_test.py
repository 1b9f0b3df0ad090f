"""A run whose workdir, data and models lie in a bucket."""

import numpy as np
import pytest

import matta_jax
from matta_jax import checkpoints, elastic, packages, storage
from matta_jax.errors import UserError
from matta_jax.nesting import flatten
from matta_jax.storage import _lines

# Three runs, of which two go on.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(make_bucket):
    return make_bucket("a-run")


@pytest.fixture(scope="module")
def config(tiny, root, corpus):
    """`config(num_steps)`: a run of texts in the bucket."""
    for file in storage.glob(corpus.removeprefix("text:")):
        storage.copy_file(file, storage.path(root) / "texts" / file.name)
    return lambda num_steps: tiny(
        data__source=f"text:{root}/texts/*.txt",
        train__num_steps=num_steps,
        train__tensorboard=True,
        train__checkpoint_every=2,
        optimizer__warmup_steps=1,
    )


@pytest.fixture(scope="module")
def workdir(root, config):
    """A run of two steps that went on to four."""
    where = f"{root}/runs/a run@x"
    for num_steps in (2, 4):
        result = matta_jax.train(config(num_steps), where, extend=True, log=lambda _: None)
        assert result.finished
    return where


def weights_of(workdir):
    source = checkpoints.open_source(str(workdir))
    return flatten(source.read(source.nest.ta))


def test_a_run_goes_on_to_the_bits_of_one_on_the_disk(workdir, config, tmp_path):
    for num_steps in (2, 4):
        matta_jax.train(config(num_steps), tmp_path / "run", extend=True, log=lambda _: None)
    local, remote = weights_of(tmp_path / "run"), weights_of(workdir)
    assert local.keys() == remote.keys()
    assert all(np.array_equal(local[path], remote[path]) for path in local)
    lines = [
        storage.read_text(storage.path(place) / "metrics.jsonl").count("\n")
        for place in (tmp_path / "run", workdir)
    ]
    assert lines[0] == lines[1] > 0
    assert storage.match(storage.path(workdir) / "tensorboard", "events*")


def test_a_checkpoint_is_saved_after_the_metrics_of_its_steps(root, config, monkeypatch):
    """A process that is killed then tells of no step again, and no line is missing."""
    # Lines wait for checkpoints alone, but for the first.
    monkeypatch.setattr(_lines, "_SECONDS", 1e9)
    workdir = storage.path(f"{root}/runs/waits")
    seen, save = {}, checkpoints.Checkpoints.save

    def save_and_look(self, step, *args, **kwargs):
        lines = storage.recover_lines(workdir / "metrics.jsonl")
        seen[step] = [storage.parse_json(line)["step"] for line in lines]
        return save(self, step, *args, **kwargs)

    monkeypatch.setattr(checkpoints.Checkpoints, "save", save_and_look)
    matta_jax.train(config(4), workdir, log=lambda _: None)
    assert {1, 2} <= set(seen[2]) and {1, 2, 3, 4} <= set(seen[4])
    rows = storage.recover_lines(workdir / "metrics.jsonl")
    assert storage.parse_json(rows[-1])["ended"] == 1


@pytest.mark.parametrize("kind", ["orbax", "safetensors"])
def test_models_come_out_of_it_and_into_it(workdir, root, kind):
    target = f"{root}/models/{kind}"
    packaging = packages.Packaging(kind)
    [model] = matta_jax.extract(workdir, ["student"], target, packaging=packaging)
    assert str(model.path) == target and model.max_difference == 0
    loaded = flatten(elastic.verify(target).load().params)
    source = checkpoints.open_source(workdir)
    for path, weight in flatten(source.read(source.nest.student)).items():
        np.testing.assert_array_equal(loaded[path], weight)
    with pytest.raises(UserError, match="exists; name another folder"):
        matta_jax.extract(workdir, ["student"], target)


def test_a_flipped_byte_in_a_bucket_is_named(workdir, root):
    target = f"{root}/models/flipped"
    matta_jax.extract(workdir, ["student"], target, packaging=packages.Packaging("safetensors"))
    file = storage.path(target) / "model.safetensors"
    data = bytearray(storage.read_bytes(file))
    data[-1] ^= 1
    file.write(bytes(data))
    with pytest.raises(UserError, match="differs from its fingerprint"):
        elastic.verify(target)


def test_a_step_without_its_mark_is_none(workdir):
    folder = storage.path(workdir) / "checkpoints"
    assert checkpoints.saved_steps(folder)[-1] == 4
    storage.copy_file(folder / "4" / "_CHECKPOINT_METADATA", folder / "9" / "_CHECKPOINT_METADATA")
    assert 9 not in checkpoints.saved_steps(folder)
    assert checkpoints.locate(workdir)[1] == 4


def test_a_store_that_orbax_cannot_write_is_refused_before_anything_starts(s3_bucket, config):
    with pytest.raises(UserError, match="saves checkpoints on local disks and in gs:// alone"):
        matta_jax.train(config(2), f"{s3_bucket}/run", log=lambda _: None)
    assert not storage.path(f"{s3_bucket}/run").exists()
