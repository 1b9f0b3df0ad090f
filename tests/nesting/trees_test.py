"""Trees as flat dicts, and back."""

import hypothesis
import hypothesis.strategies as st

from matta_jax import nesting

LEAVES = st.integers() | st.tuples(st.sampled_from(["layers", "d_model"]))
NAMES = st.text("abc0", min_size=1)
TREES = st.dictionaries(
    NAMES,
    st.recursive(LEAVES, lambda inner: st.dictionaries(NAMES, inner, min_size=1), max_leaves=6),
)


@hypothesis.given(TREES)
def test_trees_round_trip(tree):
    assert nesting.unflatten(nesting.flatten(tree)) == tree


def test_paths_are_those_of_weights():
    tree = {"blocks": {"0": {"w": ("layers", "d_model")}}, "norm": ("d_model",)}
    assert nesting.flatten(tree) == {"blocks/0/w": ("layers", "d_model"), "norm": ("d_model",)}
