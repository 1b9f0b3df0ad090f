"""A sub-model reads its part of its TA's checkpoint."""

import jax
import numpy as np

from matta_jax import checkpoints, nesting

SPECS = [
    "student",
    "ta",
    "d_ff=48,16,48",
    "layers=2;d_ff=32",
    "layers=0,2;d_model=16;num_heads=2;d_ff=16,48",
    "num_heads=3,2,3",
]


def test_a_sub_model_reads_its_own_bytes_and_no_others(run):
    """Every read of the store is counted: they add up to the sub-model."""
    source = checkpoints.open_source(str(run[1]))
    bytes_read = []

    def counted(read):
        def count(index):
            part = read(index)
            bytes_read.append(part.nbytes)
            return part

        return count

    for array in jax.tree.leaves(source.stored):
        object.__setattr__(array, "read", counted(array.read))
    for spec in SPECS:
        bytes_read.clear()
        sub_model = nesting.parse_spec(spec, source.nest)
        source.read(sub_model)
        assert sum(bytes_read) == source.count(sub_model).bytes


def test_a_family_larger_than_its_ta_reads_the_ta_once(run):
    source = checkpoints.open_source(str(run[1]))
    sub_models = [nesting.parse_spec(spec, source.nest) for spec in SPECS]
    together = list(source.read_many(sub_models))
    apart = [source.read(sub_model) for sub_model in sub_models]
    assert jax.tree.all(jax.tree.map(np.array_equal, together, apart))
