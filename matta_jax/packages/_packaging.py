"""How a model is written: its format, its type, the size of its files."""

import dataclasses
import math

import jax.numpy as jnp

from matta_jax.errors import UserError, did_you_mean
from matta_jax.nesting import Counts

FORMATS = ("orbax", "safetensors", "hf")
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclasses.dataclass(frozen=True)
class Packaging:
    """How models are written.

    Attributes:
      format: `orbax`, `safetensors` or `hf`.
      dtype: `fp32` or `bf16`.
      with_optimizer: whether the sub-model's part of the optimiser state goes along (orbax).
      overwrite: whether an extracted model may be replaced.
      max_shard_gb: GB (1e9 bytes) that a file of `safetensors` or `hf` has at most; a model of more
        is split into several, with an index. A tensor is never split.
    """

    format: str = "orbax"
    dtype: str = "fp32"
    with_optimizer: bool = False
    overwrite: bool = False
    max_shard_gb: float = 5.0

    def __post_init__(self) -> None:
        for name, allowed in {"format": FORMATS, "dtype": tuple(DTYPES)}.items():
            value = getattr(self, name)
            if value not in allowed:
                raise UserError(
                    f"{name}={value!r} must be one of "
                    f"{', '.join(allowed)}{did_you_mean(value, allowed)}"
                )
        if self.with_optimizer and (self.format, self.dtype) != ("orbax", "fp32"):
            raise UserError(
                "with_optimizer needs format=orbax and dtype=fp32: training goes on from these "
                "alone"
            )
        if not (self.max_shard_gb > 0 and math.isfinite(self.max_shard_gb)):
            raise UserError(
                f"max_shard_gb={self.max_shard_gb!r} must be above 0 and finite, such as 5"
            )

    @property
    def shard_bytes(self) -> int:
        """Of a file, at most."""
        return int(self.max_shard_gb * 1e9)


def at_dtype(counts: Counts, dtype: str) -> Counts:
    """The counts of a model that is stored in a type of `DTYPES`."""
    return dataclasses.replace(counts, bytes=counts.parameters * jnp.dtype(DTYPES[dtype]).itemsize)
