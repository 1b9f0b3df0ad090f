"""Tokens in files: read as the array that was written, or named as damaged."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from matta_jax.data import _shards, _tokens
from matta_jax.errors import UserError

DTYPE = np.dtype("uint16")


def write(folder, pieces, name="a.array_record"):
    writer = _shards.ShardWriter(folder / name)
    for piece in pieces:
        writer.put(piece)
    return writer.close(name)


@hypothesis.given(
    st.lists(st.lists(st.integers(0, 40_000), max_size=3), min_size=1, max_size=4), st.data()
)
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_any_slice_is_that_of_the_array(tmp_path, sizes, drawn):
    rng = np.random.default_rng(0)
    files = [[rng.integers(0, 2**16, size).astype(DTYPE) for size in piece] for piece in sizes]
    shards = [write(tmp_path, pieces, f"{i}.array_record") for i, pieces in enumerate(files)]
    lead = np.array([7, 9])
    files_of = [
        _shards.ShardTokens(shard, lambda shard=shard: tmp_path / shard.file, DTYPE)
        for shard in shards
    ]
    tokens = _tokens.JoinedTokens([lead.astype(DTYPE), *files_of])
    whole = np.concatenate([lead.astype(DTYPE), *(piece for each in files for piece in each)])
    assert len(tokens) == len(whole) and tokens[:].dtype == DTYPE
    np.testing.assert_array_equal(tokens[:], whole)
    for _ in range(5):
        start, stop = (drawn.draw(st.integers(-5, len(whole) + 5)) for _ in range(2))
        np.testing.assert_array_equal(tokens[start:stop], whole[start:stop])
    with pytest.raises(IndexError):
        tokens[::2]


def test_every_flipped_byte_of_tokens_is_named(tmp_path):
    rng = np.random.default_rng(0)
    shard = write(tmp_path, [rng.integers(0, 2**16, 30_000).astype(DTYPE)])
    path = tmp_path / shard.file
    data = path.read_bytes()
    whole = _shards.read_shard(path, shard, DTYPE)
    for position in range(0, len(data), 997):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            # What fills the file up may change; the tokens may not.
            np.testing.assert_array_equal(_shards.read_shard(path, shard, DTYPE), whole)
        except UserError as error:
            assert "a.array_record of the prepared corpus cannot be read" in str(error)
            assert "\n" not in str(error)


def test_a_file_of_fewer_tokens_than_it_should_have_is_named(tmp_path):
    shard = write(tmp_path, [np.arange(50_000).astype(DTYPE)])
    more = dataclasses.replace(shard, num_tokens=shard.num_tokens + 3)
    tokens = _shards.ShardTokens(more, lambda: tmp_path / shard.file, DTYPE)
    assert len(tokens[49_990:50_000]) == 10
    with pytest.raises(UserError, match=r"a\.array_record .* cannot be read \(it is cut\)"):
        tokens[49_990:50_003]


@pytest.mark.parametrize("size", [0, 100, 40_000])
def test_a_file_that_is_cut_or_gone_is_named(tmp_path, size):
    shard = write(tmp_path, [np.arange(50_000).astype(DTYPE)])
    path = tmp_path / shard.file
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"a\.array_record .* cannot be read"):
        _shards.read_shard(path, shard, DTYPE)
    path.unlink()
    with pytest.raises(UserError, match=r"a\.array_record .* cannot be read"):
        _shards.read_shard(path, shard, DTYPE)
    other = write(tmp_path, [np.arange(50_000).astype(DTYPE) + np.uint16(1)], "b.array_record")
    with pytest.raises(UserError, match="it is not what was written"):
        _shards.read_shard(tmp_path / other.file, shard, DTYPE)
