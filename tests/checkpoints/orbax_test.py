"""Checkpoints are saved, kept, restored and verified; what is damaged is named."""

import shutil

import jax
import jax.numpy as jnp
import pytest
import tensorstore

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


def test_saves_keeps_and_restores(tmp_path):
    with checkpoints.Checkpoints(tmp_path / "c", keep=2) as saved:
        for step, loss in ((1, 0.1), (2, 3.0), (3, 2.0), (4, 1.0)):
            params = jax.tree.map(lambda leaf, step=step: leaf + step, TREE)
            saved.save(step, {"params": params}, META, loss=loss)
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


# Of Orbax's abandoned coroutines.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_truncated_missing_and_foreign_folders_end_in_one_line(folder, tmp_path):
    path, big = folder
    file = data_files(path)[-1]
    file.write_bytes(file.read_bytes()[:100])
    for damage in (lambda: None, file.unlink, (path / "_CHECKPOINT_METADATA").unlink):
        damage()
        with pytest.raises(UserError) as error:
            checkpoints.load_folder(path, {"params": abstract(big)})
        assert str(path) in str(error.value) and "\n" not in str(error.value)
        # It would keep Orbax's coroutines, which complain when they go.
        assert error.value.__context__ is None


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


def test_pieces_of_the_checkpoint_are_chunks_of_the_file(run):
    """Orbax cuts what `nesting.units` says, for weights and moments; else a sub-model would read
    its neighbours.
    """
    path = run[1] / "checkpoints" / "6"
    for name, leaf, chunk in (
        ("params", "blocks.0.mlp.w_in", (1, 1, 1, 8, 16)),
        ("params", "embed.tokens", (256, 1, 8)),
        ("opt_state", "1.mu.blocks.0.mlp.w_in", (1, 1, 1, 8, 16)),
    ):
        base = {"driver": "ocdbt", "base": f"file://{path / name}/", "path": leaf + "/"}
        store = tensorstore.open({"driver": "zarr3", "kvstore": base}, open=True).result()
        assert store.chunk_layout.read_chunk.shape == chunk


def test_what_is_half_written_is_removed_at_a_failure(tmp_path):
    with pytest.raises(OSError), checkpoints.Checkpoints(tmp_path / "c") as saved:
        saved.save(1, {"t": TREE}, META, loss=1.0)
        half = tmp_path / "c" / "2.orbax-checkpoint-tmp" / "t"
        half.mkdir(parents=True)
        raise OSError
    assert not half.parent.exists() and saved.steps == [1]
