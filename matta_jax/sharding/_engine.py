"""Which kernel attends on which devices."""

from jax.sharding import Mesh

from matta_jax.errors import UserError
from matta_jax.sharding._mesh import batch_axes, mesh_axis
from matta_jax.sharding._placement import Engine

_PLATFORMS = {"splash": "tpu", "cudnn": "gpu"}


def engine_of(attention: str, mesh: Mesh) -> Engine | None:
    """Returns what attends on a mesh; None: blocks of queries.

    Args:
      attention: of the config: `auto`, `blocks`, or the name of a kernel.
      mesh: the devices.

    Raises:
      UserError: a kernel that these devices do not have.
    """
    platform = mesh.devices.flat[0].platform
    if attention in _PLATFORMS and _PLATFORMS[attention] != platform:
        raise UserError(
            f"model.attention={attention!r} is a kernel of {_PLATFORMS[attention].upper()}s, and "
            f"the devices are of the kind {platform!r}; use auto"
        )
    kernels = {where: name for name, where in _PLATFORMS.items()}
    name = kernels.get(platform) if attention == "auto" else attention
    if name is None or name == "blocks":
        return None
    return Engine(name, mesh, batch_axes(mesh), mesh_axis("heads"))
