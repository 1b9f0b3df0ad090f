import jax

from matta_jax import nesting, optim
from matta_jax.config import ShampooConfig


def test_blocks_end_at_the_nests_boundaries(nested_model):
    settings = ShampooConfig(
        block_size=8, precondition_every=1, start_step=0, max_dim=32, grafting="adam"
    )
    views = optim.matrix_views(nested_model.axes, nested_model.nest)
    assert views["embed"]["tokens"].column_cuts == (16, 24) and not jax.tree.leaves(views["norm"])

    blocking = optim.blocking_of(settings, nested_model.params, views)
    for bucket in blocking.buckets.values():
        assert max(bucket.shape) <= 8 and bucket.size % 8 == 0
    # The table of 40 tokens is beyond max_dim; that of positions is not.
    assert [view is None for view in (blocking.views[-3], blocking.views[-4])].count(True) >= 1


def nest_of_widths(*widths):
    sizes = {"d_model": 16, "heads": 2}
    student = nesting.SubModel((0, 1), {**sizes, "d_ff": min(widths)})
    ta = nesting.SubModel((0, 1), {**sizes, "d_ff": max(widths)})
    allowed = {"d_model": (16,), "heads": (2,), "d_ff": widths}
    return nesting.Nest({"student": student, "ta": ta}, allowed)


def test_widths_that_make_odd_blocks_are_pointed_out():
    settings = ShampooConfig(block_size=128)
    assert optim.shampoo_advice(settings, nest_of_widths(128, 256, 512)) is None
    assert optim.shampoo_advice(settings, nest_of_widths(100)) is None
    line = optim.shampoo_advice(settings, nest_of_widths(96, 160))
    assert "shampoo.block_size=128" in line and "32" in line and "(96, 160)" in line
