"""The mesh that a binary runs models on, of this process's devices."""

from absl import flags
from jax.sharding import Mesh

from matta_jax.config import MeshConfig
from matta_jax.errors import UserError
from matta_jax.sharding import local_mesh

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


def of_rows() -> Mesh | None:
    """The devices that read a batch: without sizes, rows over all accelerators.

    Raises UserError for sizes that do not fit the devices.
    """
    return local_mesh(chosen())


def of_texts() -> Mesh | None:
    """The devices that share a model which writes; without sizes, the first writes all texts.
    Raises UserError for sizes that split texts, or do not fit the devices.
    """
    sizes = chosen(data=1)
    if sizes is not None and sizes.data != 1:
        raise UserError(
            f"mesh.data={sizes.data}: texts are not split over devices; leave it out, and split "
            "weights and caches by mesh.tensor, or weights by mesh.fsdp"
        )
    return None if sizes is None else local_mesh(sizes)
