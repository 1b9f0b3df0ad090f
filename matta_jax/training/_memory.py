"""Whether a run can fit the memory of its devices, told before anything is allocated."""

import dataclasses
import os

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from matta_jax.errors import UserError
from matta_jax.training._dry_run import device_bytes
from matta_jax.training._state import Setup


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes that a device holds at once, whatever the compiler does: more are needed than these.

    Attributes:
      state: weights, gradient and optimiser state, and a Teacher's weights.
      activations: what the TA's layers keep of a microbatch for the backward pass.
    """

    state: int
    activations: int

    @property
    def total(self) -> int:
        """Of both."""
        return self.state + self.activations


def least_need(setup: Setup) -> Need:
    """The least that a training step of a run needs on each device."""
    params = device_bytes(setup.abstract.params)
    # The gradient as a whole: its norm decides whether the step is taken.
    state = 2 * params + device_bytes(setup.abstract.opt_state)
    state += device_bytes(setup.abstract_teacher)
    return Need(state, _least_activations(setup))


def _least_activations(setup: Setup) -> int:
    """The residual stream before each layer of the TA; and where matmuls are kept, the hidden
    layer of its feed-forward parts.
    """
    config, ta = setup.config, setup.nest.ta
    values_per_token = sum(ta.along("d_model"))
    if config.model.remat_policy not in ("full", "offload"):
        values_per_token += sum(ta.along("d_ff"))

    tokens = config.data.batch_size * config.seq_len
    itemsize = jnp.dtype(config.model.compute_dtype).itemsize
    parts = setup.mesh.size * config.train.microbatches
    return tokens * values_per_token * itemsize // parts


def device_memory(mesh: Mesh) -> int | None:
    """The bytes that each device of a mesh may use; None where it does not tell.

    CPU devices share the memory of the machine.
    """
    devices = [device for device in mesh.devices.flat if device in jax.local_devices()]
    if not devices:
        return None
    if devices[0].platform == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // len(devices)
    stats = devices[0].memory_stats() or {}
    return stats.get("bytes_limit")


def check_memory(setup: Setup) -> None:
    """Raises UserError where a run plainly does not fit the memory of its devices."""
    there = device_memory(setup.mesh)
    need = least_need(setup)
    if there is None or need.total <= there:
        return

    mend = "lower data.batch_size or data.seq_len, or raise train.microbatches"
    if need.state > there:
        mend = (
            "lower the sizes of model.* and nest.*, or spread them over more devices by mesh.fsdp"
        )
    raise UserError(
        f"the run needs more than {_gigabytes(need.total)} GB on each device "
        f"({_gigabytes(need.state)} of weights, gradient and optimiser state, "
        f"{_gigabytes(need.activations)} of activations), and one has {_gigabytes(there)} GB; "
        f"{mend}"
    )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.3g}" if count < 1e12 else f"{count / 1e9:,.0f}"
