"""A part of a stored array is read and verified without the whole."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from matta_jax import checkpoints, extract
from matta_jax.config import MeshConfig
from matta_jax.errors import UserError
from matta_jax.sharding import local_mesh, place


def test_what_lies_outside_the_slice_may_be_damaged(run, tmp_path):
    """The Student's pieces are read and verified; the TA's alone are neither."""
    workdir = tmp_path / "run"
    shutil.copytree(run[1], workdir)
    outside = checkpoints.open_source(str(workdir)).stored["embed"]["tokens"].whole()[:, 16:]
    for file in (workdir / "checkpoints" / "6").rglob("d/*"):
        content = bytearray(file.read_bytes())
        position = content.find(np.ascontiguousarray(outside).tobytes())
        if position >= 0:
            content[position + 5] ^= 1
            file.write_bytes(bytes(content))
    extract(str(workdir), ["student"], tmp_path / "student")
    with pytest.raises(
        UserError, match="array params/embed/tokens differs from its fingerprint; use another step"
    ):
        extract(str(workdir), ["ta"], tmp_path / "ta")


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ((slice(0, 3), slice(None)), "cuts through pieces of 2"),
        ((slice(None), slice(0, 1)), "cuts an axis of 3 that is stored whole"),
    ],
)
def test_an_index_keeps_whole_pieces(index, words):
    array = np.arange(12, dtype=np.float32).reshape(4, 3)
    units = (2, 0)
    stored = checkpoints.StoredArray(
        name="array",
        shape=array.shape,
        dtype=array.dtype,
        units=units,
        fingerprint=checkpoints.fingerprint(array, units),
        mend="read it again",
        read=lambda index: array[index],
    )
    np.testing.assert_array_equal(stored[2:4, :], array[2:])
    with pytest.raises(ValueError, match=words):
        stored[index]
    array[3, 2] += 1
    np.testing.assert_array_equal(stored[0:2, :], array[:2])
    with pytest.raises(UserError, match="array differs from its fingerprint; read it again"):
        stored[2:4, :]


@pytest.mark.parametrize("units", [(1, 0), (0, 0)])
def test_an_array_goes_onto_devices_by_its_entries(units, monkeypatch):
    array = np.arange(24, dtype=np.float32).reshape(3, 8)
    prints = checkpoints.fingerprint(array, units)
    stored = checkpoints.StoredArray(
        "it", array.shape, array.dtype, units, prints, "mend", array.__getitem__
    )
    parts = []

    def recorded(part, sharding):
        parts.append(part.shape)
        return place(part, sharding)

    monkeypatch.setattr(checkpoints._stored, "place", recorded)
    mesh = local_mesh(MeshConfig(data=2, tensor=4))
    placed = stored.onto(NamedSharding(mesh, PartitionSpec(None, "tensor")), jnp.float32)
    np.testing.assert_array_equal(placed, array)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(3, 2)}
    # A host has but one entry at a time.
    assert parts == ([(1, 8)] * 3 if units[0] else [(3, 8)])

    array[1, 5] += 1
    with pytest.raises(UserError, match="it differs from its fingerprint; mend"):
        stored.onto(NamedSharding(mesh, PartitionSpec(None, "tensor")))
