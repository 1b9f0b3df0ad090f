"""Whether a run fits a TPU slice that nobody has here: its step compiled ahead of time for a named
topology.
"""

import collections
import dataclasses
import re
from collections.abc import Sequence

from matta_jax.config import Config
from matta_jax.errors import UserError
from matta_jax.sharding import (
    Collective,
    Overlap,
    Topology,
    check_mesh,
    collectives,
    make_mesh,
    memory_bytes,
    mesh_text,
    overlaps,
    parse_topology,
    topology_devices,
)
from matta_jax.training._cost import step_flops_of
from matta_jax.training._dry_run import compile_step, device_bytes
from matta_jax.training._metrics import Log
from matta_jax.training._state import Setup, make_setup

_REALISTIC_MFU = 0.45  # What published runs reach on these chips (v6e 8B 45.5 %: MaxText).


@dataclasses.dataclass(frozen=True)
class CompileReport:
    """What the compiler says of a run's step on a topology. Bytes and FLOPs are per device and
    step.

    Attributes:
      topology: its name.
      mesh: the (data, fsdp, tensor, context) sizes.
      hbm_bytes: memory of a device.
      parameter_bytes, optimizer_bytes: of the state.
      temporary_bytes: all else that the step needs at its peak; None when the compiler gave up.
      needed_bytes: of the whole step, by the compiler.
      collective_bytes: of the results of collectives within a slice, by kind.
      network_bytes: the same from slice to slice.
      overlapped_bytes: of collectives within a slice, those that run beside matmuls.
      traffic_bytes: read from and written to the memory of a device.
      flops: analytic, recomputation not counted.
      compute_seconds, memory_seconds, collective_seconds, network_seconds: each at the chip's peak.
    """

    topology: str
    mesh: tuple[int, ...]
    hbm_bytes: float
    parameter_bytes: int
    optimizer_bytes: int
    temporary_bytes: int | None
    needed_bytes: int
    collective_bytes: dict[str, int]
    network_bytes: dict[str, int]
    traffic_bytes: int
    flops: float
    compute_seconds: float
    memory_seconds: float
    collective_seconds: float
    network_seconds: float
    overlapped_bytes: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether the step fits the memory of a device."""
        return self.temporary_bytes is not None and self.needed_bytes <= self.hbm_bytes

    @property
    def bound_seconds(self) -> float:
        """The roofline: computation, memory, collectives and the network between slices, each at
        full speed and wholly overlapped.
        """
        return max((self._roofs | {"computation": self.compute_seconds}).values())

    @property
    def expected_seconds(self) -> float:
        """The roofline with computation at the MFU that published runs reach."""
        return max(self._roofs.values())

    @property
    def roof(self) -> str:
        """What the step is to wait for: computation, memory, collectives or the network between
        slices.
        """
        return max(self._roofs, key=self._roofs.__getitem__)

    @property
    def _roofs(self) -> dict[str, float]:
        roofs = {
            "computation": self.compute_seconds / _REALISTIC_MFU,
            "memory": self.memory_seconds,
            "collectives": self.collective_seconds,
        }
        return roofs | ({"network": self.network_seconds} if self.network_bytes else {})

    def text(self) -> str:
        """The report for people."""
        verdict = "fits"
        if not self.fits:
            verdict = "does not fit: raise mesh.fsdp or train.microbatches, or take a larger slice"
        lines = [
            f"{self.topology}, mesh {mesh_text(self.mesh)}; per device:",
            *self._memory_lines(),
            *self._collective_lines(),
            *self._traffic_lines(),
            f"  computation      {self.flops / 1e12:>9.3f} TFLOP a step",
            *self._time_lines(),
            verdict,
        ]
        return "\n".join(lines)

    def _memory_lines(self) -> list[str]:
        sizes = {
            "parameters": self.parameter_bytes,
            "optimiser": self.optimizer_bytes,
            "temporaries": self.temporary_bytes,
            "needed": self.needed_bytes,
            "there": self.hbm_bytes,
        }
        lines = []
        for name, size in sizes.items():
            amount = "     unknown" if size is None else f"{size / 1e9:>9.3f} GB"
            lines.append(f"  HBM {name:<12} {amount}")
        return lines

    def _collective_lines(self) -> list[str]:
        # A compiler that gave up says nothing of the collectives.
        if self.temporary_bytes is None:
            return []
        lines = [
            f"  {kind:<16} {size / 1e9:>9.3f} GB a step, of which "
            f"{self.overlapped_bytes.get(kind, 0) / 1e9:.3f} beside matmuls"
            for kind, size in sorted(self.collective_bytes.items())
        ]
        lines += [
            f"  {kind:<16} {size / 1e9:>9.3f} GB a step from slice to slice"
            for kind, size in sorted(self.network_bytes.items())
        ]
        return lines

    def _traffic_lines(self) -> list[str]:
        if self.temporary_bytes is None:
            return []
        return [f"  HBM traffic      {self.traffic_bytes / 1e9:>9.3f} GB a step"]

    def _time_lines(self) -> list[str]:
        # Without the collectives, a time would be too short by an unknown amount.
        if self.temporary_bytes is None:
            return []
        names = {
            "computation": f"computation at {_REALISTIC_MFU:.0%} of the peak",
            "collectives": "collectives at the links' full speed",
            "network": "the network between slices at its full speed",
        }
        *parts, last = [
            f"{names.get(name, name)} ({1e3 * seconds:.1f} ms)"
            for name, seconds in self._roofs.items()
        ]
        return [
            f"  step time        {1e3 * self.expected_seconds:>9.1f} ms, by {self.roof}: the "
            f"largest of {', '.join(parts)} and {last}",
            f"  at least         {1e3 * self.bound_seconds:>9.1f} ms: the same at 100 % of the "
            "peak",
        ]


@dataclasses.dataclass(frozen=True)
class _Compiled:
    """What the compiler says: bytes of the whole step and of its temporaries (None when the
    compiler gave up), what it reads and writes, the collectives, and those of them that have a
    start and a done.
    """

    needed_bytes: int
    temporary_bytes: int | None
    traffic_bytes: int
    collectives: list[Collective]
    overlaps: list[Overlap]


def compile_check(config: Config, topology: str, *, log: Log = lambda line: None) -> CompileReport:
    """Compiles a run's step for a TPU topology such as `v5e:4x4`, or `2xv5e:4x4` with
    `mesh.slices=2`, on a machine without a TPU.

    Args:
      config: of the run.
      topology: chips, and how they are joined.
      log: takes a line for people before the compiler starts, which may take minutes.

    Raises:
      UserError: the topology cannot be compiled for, or the mesh does not fit it.

    Examples:
      >>> report = matta_jax.compile_check(config, "v5e:2x2")
      >>> report.needed_bytes < report.hbm_bytes
      True
    """
    parsed = parse_topology(topology)
    if parsed.slices != config.mesh.slices:
        raise UserError(_unlike_slices(parsed, config.mesh.slices))
    devices = topology_devices(topology)
    sizes = check_mesh(
        config.mesh,
        batch_size=config.data.batch_size,
        microbatches=config.train.microbatches,
        num_devices=len(devices),
    )
    setup = make_setup(config, make_mesh(sizes, devices, slices=config.mesh.slices))
    chip = parsed.chip
    parameter_bytes = device_bytes(setup.abstract.params)
    optimizer_bytes = device_bytes(setup.abstract.opt_state)
    log(f"compiles the step for {topology}, mesh {mesh_text(sizes)}: minutes, of a large model")
    compiled = _compiled(setup, state_bytes=parameter_bytes + optimizer_bytes)
    hidden = [overlap.collective for overlap in compiled.overlaps if overlap.matmuls]
    tokens = config.data.batch_size * config.seq_len
    flops = step_flops_of(setup) * tokens / setup.mesh.size
    return CompileReport(
        topology=topology,
        mesh=sizes,
        hbm_bytes=chip.hbm_gb * 1e9,
        parameter_bytes=parameter_bytes,
        optimizer_bytes=optimizer_bytes,
        temporary_bytes=compiled.temporary_bytes,
        needed_bytes=compiled.needed_bytes,
        collective_bytes=_bytes_by_kind(compiled.collectives, crosses_slices=False),
        network_bytes=_bytes_by_kind(compiled.collectives, crosses_slices=True),
        traffic_bytes=compiled.traffic_bytes,
        flops=flops,
        compute_seconds=flops / (chip.tflops * 1e12),
        memory_seconds=compiled.traffic_bytes / (chip.hbm_gb_per_second * 1e9),
        collective_seconds=parsed.link_seconds(compiled.collectives),
        network_seconds=parsed.network_seconds(compiled.collectives),
        overlapped_bytes=_bytes_by_kind(hidden, crosses_slices=False),
    )


def _unlike_slices(topology: Topology, slices: int) -> str:
    mend = f"use mesh.slices={topology.slices}"
    if topology.slices == 1:
        mend += f", or --topology={slices}x{topology.text}"
    return f"mesh.slices={slices}, but topology={topology.text!r} has {topology.slices}; {mend}"


def _bytes_by_kind(crossing: Sequence[Collective], *, crosses_slices: bool) -> dict[str, int]:
    sizes: dict[str, int] = collections.defaultdict(int)
    for collective in crossing:
        if collective.crosses_slices == crosses_slices:
            sizes[collective.kind] += collective.bytes * collective.times
    return dict(sizes)


def _compiled(setup: Setup, *, state_bytes: int) -> _Compiled:
    """Compiles the step, and keeps what the compiler says when the step does not fit."""
    try:
        executable = compile_step(setup)
    except Exception as error:
        needed_bytes = _bytes_of_refusal(str(error), state_bytes)
        if needed_bytes is None:
            raise
        return _Compiled(needed_bytes, None, 0, [], [])
    memory = executable.memory_analysis()
    # A donated argument shares its memory with an output: it counts once.
    lasting_bytes = (
        memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    )
    needed_bytes = lasting_bytes + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    hlo = executable.as_text()
    return _Compiled(
        needed_bytes,
        memory.temp_size_in_bytes,
        memory_bytes(hlo),
        collectives(hlo),
        overlaps(hlo),
    )


def _bytes_of_refusal(message: str, state_bytes: int) -> int | None:
    """What a compiler that refuses for want of memory says that it would have needed, beside the
    state.
    """
    # The first message counts the state; the second counts only the temporaries.
    patterns = (
        (r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", 0),
        (r"HLO temporaries \(([\d.]+)([KMGT])", state_bytes),
    )
    for pattern, uncounted_bytes in patterns:
        if match := re.search(pattern, message):
            unit = 1024 ** ("KMGT".index(match[2]) + 1)
            return int(float(match[1]) * unit) + uncounted_bytes
    return None
