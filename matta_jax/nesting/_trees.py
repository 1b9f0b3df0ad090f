"""Trees of weights as flat dicts by path, and back."""

from collections.abc import Mapping
from typing import Any

import jax


def path_name(key_path: Any) -> str:
    """A key path of jax's as `blocks/0/mlp/w_in`."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def flatten(tree: Any) -> dict[str, Any]:
    """Flattens nested dicts to `{"blocks/0/mlp/w_in": leaf}`, tuples being leaves."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_tuple)
    return {path_name(path): leaf for path, leaf in leaves}


def _is_tuple(node: Any) -> bool:
    return isinstance(node, tuple)


def unflatten(flat: Mapping[str, Any]) -> Any:
    """Undoes `flatten` on nested dicts."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree
