"""TPU topologies that are not there: what their chips can do, and meshes over them to
compile for.
"""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import Any

from matta_jax.errors import UserError, did_you_mean
from matta_jax.sharding._collectives import Collective


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a device of a TPU generation can do at most; from Google Cloud's pages on each
    (docs.cloud.google.com/tpu). A chip is one device, but of v4 and tpu7x, whose two cores are two.

    Attributes:
      hbm_gb: memory, in 10⁹ bytes.
      hbm_gb_per_second: what it reads and writes, in 10⁹ bytes.
      tflops: bf16 matmuls, in 10¹² FLOP/s.
      ici_gb_per_second: all inter-chip links together, in one direction, in 10⁹ bytes.
      wraps_from: chips of an axis of a slice from which its ends are joined too.
    """

    hbm_gb: float
    hbm_gb_per_second: float
    tflops: float
    ici_gb_per_second: float
    wraps_from: int


# How many characters of libtpu's error a message shows.
_SHOWN_CHARACTERS = 160

# Dense bfloat16 matmuls of a device, in 10¹² FLOP/s, by a part of the name that it calls itself;
# from the pages of Google Cloud and the data sheets of NVIDIA. The first that fits counts.
_PEAKS = {
    "TPU v5 lite": 197,
    "TPU v5e": 197,
    "TPU v5": 459,
    "TPU v6 lite": 918,
    "TPU v6e": 918,
    # A device is one of a chip's two cores.
    "TPU7x": 1153.5,
    "TPU v4": 275,
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "B200": 2250,
    "A100": 312,
}

CHIPS = {
    "v4": Chip(16, hbm_gb_per_second=600, tflops=137.5, ici_gb_per_second=150, wraps_from=4),
    "v5e": Chip(16, hbm_gb_per_second=819, tflops=197, ici_gb_per_second=200, wraps_from=16),
    "v5p": Chip(95, hbm_gb_per_second=2765, tflops=459, ici_gb_per_second=600, wraps_from=4),
    "v6e": Chip(32, hbm_gb_per_second=1638, tflops=918, ici_gb_per_second=400, wraps_from=16),
    "tpu7x": Chip(96, hbm_gb_per_second=3690, tflops=1153.5, ici_gb_per_second=300, wraps_from=4),
}


def published_tflops(device_kind: str) -> float | None:
    """The dense bfloat16 peak of a device, in 10¹² FLOP/s; None where it is not known."""
    return next((peak for name, peak in _PEAKS.items() if name in device_kind), None)


def topology_devices(topology: str) -> Sequence[Any]:
    """Returns the devices of a topology such as `v5e:4x4`: to compile for, not to run on.

    Raises:
      UserError: an unknown chip or shape, or libtpu is not installed.
    """
    chip, colon, _ = topology.partition(":")
    if chip not in CHIPS or not colon:
        hint = "" if chip in CHIPS else did_you_mean(chip, CHIPS)
        raise UserError(
            f"topology={topology!r} must be a chip ({', '.join(CHIPS)}) and a shape, such as "
            f"v5e:4x4 or v5p:2x2x2{hint}"
        )

    # No metadata server is asked, and several processes may compile at once. Both are read when
    # libtpu is loaded.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    # JAX and libtpu raise many kinds, for a missing library as for a bad shape.
    except Exception as error:
        reason = " ".join(str(error).split())[:_SHOWN_CHARACTERS]
        raise UserError(
            f"topology={topology!r} cannot be compiled for ({type(error).__name__}: {reason}); the "
            "shape must be one that the chip has, and compiling needs libtpu: "
            "pip install 'matta_jax[tpu]'"
        ) from None


def collective_seconds(topology: str, collectives: Iterable[Collective]) -> float:
    """The least time that a step's collectives take on a topology: all links busy in one direction,
    or half of them where the ends of an axis are not joined.
    """
    name, _, shape = topology.partition(":")
    chip = CHIPS[name]
    is_ring = all(int(size) >= chip.wraps_from for size in shape.split("x"))
    speed = chip.ici_gb_per_second * (1 if is_ring else 0.5)
    sent_bytes = sum(collective.sent * collective.times for collective in collectives)
    return sent_bytes / (speed * 1e9)
