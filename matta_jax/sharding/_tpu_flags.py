"""Flags of the compiler for TPUs, by the names of what they are for."""

import os

from matta_jax.errors import UserError, did_you_mean

_VARIABLE = "LIBTPU_INIT_ARGS"

OVERLAP = {
    # A gather becomes a start and a done, between which the TPU computes.
    "xla_enable_async_all_gather": "true",
    # What runs between them is fused with steps of the collective, so that one core does both.
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    # A collective may go on over several matmuls; else it must hide behind one.
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    # The core that multiplies sends, too, instead of waiting for it.
    "xla_tpu_overlap_compute_collective_tc": "true",
}
"""Collectives that run while matrices are multiplied. libtpu 0.0.42.1 has all of them on by itself;
older ones need not."""

SYNCHRONOUS = dict.fromkeys(OVERLAP, "false")
"""The same off: to measure what overlap gains, or where a compiler fails with it."""

TPU_FLAGS = {"none": {}, "overlap": OVERLAP, "synchronous": SYNCHRONOUS}
"""Flags with their values, by name; of `none` libtpu's defaults hold."""


def set_tpu_flags(name: str) -> None:
    """Sets the flags of a name for this process and its children, before libtpu is loaded.

    A flag that `LIBTPU_INIT_ARGS` has already stays as it is there. libtpu ends a process that
    passes it a flag which it does not know.

    Raises:
      UserError: no such name.
    """
    if name not in TPU_FLAGS:
        raise UserError(
            f"tpu_flags={name!r} must be one of {', '.join(TPU_FLAGS)}"
            f"{did_you_mean(name, TPU_FLAGS)}; other flags go into {_VARIABLE}"
        )
    words = os.environ.get(_VARIABLE, "").split()
    present = {word.lstrip("-").partition("=")[0] for word in words}
    words += [f"--{flag}={value}" for flag, value in TPU_FLAGS[name].items() if flag not in present]
    if words:
        os.environ[_VARIABLE] = " ".join(words)
