"""TPU topologies that are not there: what their chips can do, and meshes over them to
compile for.
"""

import dataclasses
import importlib.util
import os
import re
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
      largest: chips of the largest slice along its axes, from the shortest.
      network_gb_per_second: from slice to slice, over the network of the data centre, in 10⁹ bytes;
        None where the pages do not tell.
    """

    hbm_gb: float
    hbm_gb_per_second: float
    tflops: float
    ici_gb_per_second: float
    wraps_from: int
    largest: tuple[int, ...]
    network_gb_per_second: float | None = None


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
    "v4": Chip(
        16,
        hbm_gb_per_second=600,
        tflops=137.5,
        ici_gb_per_second=150,
        wraps_from=4,
        largest=(16, 16, 16),
    ),
    "v5e": Chip(
        16,
        hbm_gb_per_second=819,
        tflops=197,
        ici_gb_per_second=200,
        wraps_from=16,
        largest=(16, 16),
        network_gb_per_second=3.125,
    ),
    "v5p": Chip(
        95,
        hbm_gb_per_second=2765,
        tflops=459,
        ici_gb_per_second=600,
        wraps_from=4,
        largest=(16, 16, 24),
        network_gb_per_second=6.25,
    ),
    "v6e": Chip(
        32,
        hbm_gb_per_second=1638,
        tflops=918,
        ici_gb_per_second=400,
        wraps_from=16,
        largest=(16, 16),
        network_gb_per_second=12.5,
    ),
    "tpu7x": Chip(
        96,
        hbm_gb_per_second=3690,
        tflops=1153.5,
        ici_gb_per_second=300,
        wraps_from=4,
        largest=(16, 24, 24),
    ),
}

# Such as 2xv5e:4x4.
_TOPOLOGY = re.compile(r"(?:(?P<slices>[1-9]\d{0,3})x)?(?P<chip>[a-z]\w*):(?P<shape>\d+(?:x\d+)*)")


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of TPUs, or several that are alike.

    Attributes:
      text: as it was asked for, such as `v5e:4x4`, or `2xv5e:4x4`.
      chip_name: of the chip, as in `CHIPS`.
      shape: chips of a slice along its axes.
      slices: how many.
    """

    text: str
    chip_name: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Chip:
        """What a device can do."""
        return CHIPS[self.chip_name]

    def link_seconds(self, collectives: Iterable[Collective]) -> float:
        """The least time that a step's collectives take within a slice: all links busy in one
        direction, or half of them where the ends of an axis are not joined.
        """
        is_ring = all(size >= self.chip.wraps_from for size in self.shape)
        speed = self.chip.ici_gb_per_second * (1 if is_ring else 0.5)
        return _sent_bytes(collectives, crosses_slices=False) / (speed * 1e9)

    def network_seconds(self, collectives: Iterable[Collective]) -> float:
        """The least time that a step's collectives take from slice to slice; 0 of a single one."""
        speed = self.chip.network_gb_per_second
        if self.slices == 1 or speed is None:
            return 0.0
        return _sent_bytes(collectives, crosses_slices=True) / (speed * 1e9)


def parse_topology(text: str) -> Topology:
    """Reads `v5e:4x4`, or `2xv5e:4x4` for two slices.

    Raises:
      UserError: an unknown chip, a shape that no slice of it has, or several slices of a chip of
        which nobody says how fast the network between them is.
    """
    match = _TOPOLOGY.fullmatch(text)
    chip = match["chip"] if match else text.partition(":")[0]
    if match is None or chip not in CHIPS:
        name = chip.lstrip("-0123456789x") if chip not in CHIPS else chip
        hint = "" if name in CHIPS else did_you_mean(chip, CHIPS)
        raise UserError(
            f"topology={text!r} must be a chip ({', '.join(CHIPS)}) and a shape, such as "
            f"v5e:4x4 or v5p:2x2x2, or 2xv5e:4x4 for two slices, of 9999 at most{hint}"
        )
    slices = int(match["slices"] or 1)
    if slices > 1 and CHIPS[chip].network_gb_per_second is None:
        speeds = [name for name, told in CHIPS.items() if told.network_gb_per_second is not None]
        raise UserError(
            f"topology={text!r}: how fast the network between slices of {chip} is, is not "
            f"published; several slices can be of {', '.join(speeds)}"
        )
    shape = tuple(int(size) for size in match["shape"].split("x"))
    # The compiler ends the process, or never ends, for what no machine has.
    largest = CHIPS[chip].largest
    pairs = zip(sorted(shape), largest, strict=False)
    if len(shape) != len(largest) or any(not 0 < size <= most for size, most in pairs):
        raise UserError(
            f"topology={text!r}: a slice of {chip} has {len(largest)} axes, and at most "
            f"{'x'.join(map(str, largest))} chips; name such a shape"
        )
    return Topology(text, chip, shape, slices)


def published_tflops(device_kind: str) -> float | None:
    """The dense bfloat16 peak of a device, in 10¹² FLOP/s; None where it is not known."""
    return next((peak for name, peak in _PEAKS.items() if name in device_kind), None)


def topology_devices(topology: str) -> Sequence[Any]:
    """Returns the devices of a topology such as `v5e:4x4` or `2xv5e:4x4`: to compile for, not to
    run on.

    Raises:
      UserError: an unknown chip or shape, or libtpu is not installed.
    """
    parsed = parse_topology(topology)
    name = f"{parsed.chip_name}:{'x'.join(map(str, parsed.shape))}"
    slices = {"num_slices": parsed.slices} if parsed.slices > 1 else {}

    # No metadata server is asked, and several processes may compile at once. Both are read when
    # libtpu is loaded.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **slices).devices
    # JAX and libtpu raise many kinds, for a missing library as for a bad shape.
    except Exception as error:
        reason = " ".join(str(error).split())[:_SHOWN_CHARACTERS]
        mend = "the shape must be one that the chip has, such as 2x4"
        if importlib.util.find_spec("libtpu") is None:
            mend = "compiling for TPUs needs libtpu: pip install 'matta_jax[tpu]'"
        raise UserError(
            f"topology={topology!r} cannot be compiled for ({type(error).__name__}: {reason}); "
            f"{mend}"
        ) from None


def _sent_bytes(collectives: Iterable[Collective], *, crosses_slices: bool) -> float:
    return sum(
        collective.sent * collective.times
        for collective in collectives
        if collective.crosses_slices == crosses_slices
    )
