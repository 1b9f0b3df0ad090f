import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax import checkpoints
from matta_jax.checkpoints import _orbax
from matta_jax.errors import UserError

TREE = {
    "a": {"w": jnp.arange(24, dtype=jnp.float32).reshape(4, 6)},
    "n": jnp.int32(3),
    "h": jnp.ones(5, jnp.bfloat16),
}
META = {"config": {}}


def abstract(tree):
    return checkpoints.on_one_device(jax.eval_shape(lambda: tree))


def test_any_flipped_bit_changes_the_fingerprint():
    whole = checkpoints.fingerprints(TREE)
    bits = np.asarray(TREE["a"]["w"]).view(np.uint32)
    for position in (0, 7, 23):
        for bit in (0, 13, 31):
            flipped = bits.copy()
            flipped.flat[position] ^= np.uint32(1 << bit)
            other = checkpoints.fingerprints({"a": {"w": jnp.asarray(flipped.view(np.float32))}})
            assert other["a/w"] != whole["a/w"]
    swapped = checkpoints.fingerprints({"a": {"w": TREE["a"]["w"][::-1]}})
    assert swapped["a/w"] != whole["a/w"]
    assert set(whole) == {"a/w", "n", "h"} and len({*whole.values()}) == 3


def test_the_fingerprint_is_the_same_on_any_sharding():
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", "y"))
    sharded = {"a": {"w": jax.device_put(TREE["a"]["w"], sharding)}}
    assert checkpoints.fingerprints(sharded)["a/w"] == checkpoints.fingerprints(TREE)["a/w"]


def test_saves_keeps_and_restores(tmp_path):
    with checkpoints.Checkpoints(tmp_path / "c", keep=2) as saved:
        for step, loss in ((1, 0.1), (2, 3.0), (3, 2.0), (4, 1.0)):
            saved.save(
                step,
                {"params": jax.tree.map(lambda leaf, step=step: leaf + step, TREE)},
                META,
                loss=loss,
            )
    with checkpoints.Checkpoints(tmp_path / "c", read_only=True) as saved:
        assert saved.steps == [1, 3, 4]  # The newest two, and the best.
        restored = saved.restore(3, {"params": abstract(TREE)})["params"]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b + 3).all()), restored, TREE))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "one"
    big = {"w": jax.random.normal(jax.random.key(0), (64, 64)), "v": jnp.ones(3)}
    checkpoints.save_folder(path, {"params": big}, META)
    return path, big


def data_files(path):
    return sorted((f for f in path.rglob("d/*") if f.is_file()), key=lambda f: f.stat().st_size)


def test_a_flipped_bit_is_noticed_and_its_array_named(folder):
    path, big = folder
    file = data_files(path)[-1]
    content = bytearray(file.read_bytes())
    assert len(content) > 10_000
    for position in (len(content) // 3, len(content) // 2):
        content[position] ^= 4
        file.write_bytes(bytes(content))
        with pytest.raises(UserError, match="is damaged") as error:
            checkpoints.load_folder(path, {"params": abstract(big)})
        assert "\n" not in str(error.value)
        content[position] ^= 4
    file.write_bytes(bytes(content))
    checkpoints.load_folder(path, {"params": abstract(big)})


def test_the_damaged_array_is_named(folder, monkeypatch):
    path, big = folder
    wrong = {"w": big["w"].at[3, 4].add(1e-3), "v": big["v"]}
    shutil.rmtree(path)
    real = _orbax._with_fingerprints
    monkeypatch.setattr(
        _orbax, "_with_fingerprints", lambda meta, _, units: real(meta, {"params": big}, units)
    )
    checkpoints.save_folder(path, {"params": wrong}, META)
    with pytest.raises(
        UserError, match="array params/w differs from its fingerprint; extract it again"
    ):
        checkpoints.load_folder(path, {"params": abstract(big)})


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # Of Orbax's abandoned coroutines.
def test_truncated_missing_and_foreign_folders_end_in_one_line(folder, tmp_path):
    path, big = folder
    file = data_files(path)[-1]
    file.write_bytes(file.read_bytes()[:100])
    for damage in (lambda: None, file.unlink, (path / "_CHECKPOINT_METADATA").unlink):
        damage()
        with pytest.raises(UserError) as error:
            checkpoints.load_folder(path, {"params": abstract(big)})
        assert str(path) in str(error.value) and "\n" not in str(error.value)
        assert (
            error.value.__context__ is None
        )  # It would keep Orbax's coroutines, which complain when they go.


def test_locate_names_what_is_missing(run, tmp_path):
    _, workdir, _ = run
    assert checkpoints.locate(str(workdir)) == (workdir / "checkpoints", 6)
    assert checkpoints.locate(f"{workdir}/checkpoints@3") == (workdir / "checkpoints", 3)
    for spec, words in {
        f"{workdir}@4": "no step '4'; steps: 3, 6",
        f"{workdir}@x": "no step 'x'",
        f"{tmp_path}/nowhere": "does not exist",
        str(tmp_path): "holds no checkpoint",
    }.items():
        with pytest.raises(UserError, match=words):
            checkpoints.locate(spec)
