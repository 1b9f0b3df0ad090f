"""The mesh that a binary runs models on, of this process's devices."""

from absl import flags

from matta_jax.config import MeshConfig

_WHAT = {
    "data": "Devices that split rows. -1: what the others leave.",
    "fsdp": "Devices that split rows, and the weights too. -1: what the others leave.",
    "tensor": "Devices that split heads, d_ff and vocabulary. -1: what the others leave.",
}
_SIZES = {name: flags.DEFINE_integer(f"mesh.{name}", None, what) for name, what in _WHAT.items()}


def chosen(**defaults: int) -> MeshConfig | None:
    """The sizes that the flags name, with other defaults than training's; None: they name none.
    Raises UserError for a size of 0.
    """
    sizes = {name: holder.value for name, holder in _SIZES.items() if holder.value is not None}
    return MeshConfig(**defaults | sizes) if sizes else None
