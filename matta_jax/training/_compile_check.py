"""Whether a run fits a TPU slice that nobody has here: its step compiled ahead of time for a named
topology.
"""

import collections
import dataclasses
import re

from matta_jax.config import Config
from matta_jax.sharding import (
    CHIPS,
    Collective,
    check_mesh,
    collective_seconds,
    collectives,
    make_mesh,
    topology_devices,
)
from matta_jax.training._dry_run import compile_step, device_bytes
from matta_jax.training._metrics import step_flops_per_token
from matta_jax.training._state import make_setup
from matta_jax.training._step import num_mixes, static_sub_models

_REALISTIC_MFU = 0.45  # What published runs reach on these chips (v6e 8B 45.5 %: MaxText).


@dataclasses.dataclass(frozen=True)
class CompileReport:
    """What the compiler says of a run's step on a topology. Bytes and FLOPs are per device and
    step.

    Attributes:
      topology: its name.
      mesh: the (data, fsdp, tensor) sizes.
      hbm_bytes: memory of a device.
      parameter_bytes, optimizer_bytes: of the state.
      temporary_bytes: all else that the step needs at its peak; None when the compiler gave up.
      needed_bytes: of the whole step, by the compiler.
      collective_bytes: of the results of collectives, by kind.
      flops: analytic, recomputation not counted.
      compute_seconds, collective_seconds: each at the chip's peak.
    """

    topology: str
    mesh: tuple[int, int, int]
    hbm_bytes: float
    parameter_bytes: int
    optimizer_bytes: int
    temporary_bytes: int | None
    needed_bytes: int
    collective_bytes: dict[str, int]
    flops: float
    compute_seconds: float
    collective_seconds: float

    @property
    def fits(self) -> bool:
        """Whether the step fits the memory of a device."""
        return self.temporary_bytes is not None and self.needed_bytes <= self.hbm_bytes

    @property
    def bound_seconds(self) -> float:
        """The roofline: computation at the peak and collectives at full speed, wholly
        overlapped.
        """
        return max(self.compute_seconds, self.collective_seconds)

    @property
    def expected_seconds(self) -> float:
        """The roofline with computation at the MFU that published runs reach."""
        return max(self.compute_seconds / _REALISTIC_MFU, self.collective_seconds)

    def text(self) -> str:
        """The report for people."""
        data, fsdp, tensor = self.mesh
        rows = {
            "parameters": self.parameter_bytes,
            "optimiser": self.optimizer_bytes,
            "temporaries": self.temporary_bytes,
            "needed": self.needed_bytes,
            "there": self.hbm_bytes,
        }
        lines = [f"{self.topology}, mesh data={data} fsdp={fsdp} tensor={tensor}; per device:"]
        for name, size in rows.items():
            lines.append(
                f"  HBM {name:<12} "
                + ("     unknown" if size is None else f"{size / 1e9:>9.3f} GB")
            )
        if self.temporary_bytes is not None:
            for kind, size in sorted(self.collective_bytes.items()):
                lines.append(f"  {kind:<16} {size / 1e9:>9.3f} GB a step")
        lines.append(f"  computation      {self.flops / 1e12:>9.3f} TFLOP a step")
        if self.temporary_bytes is not None:
            lines.append(
                f"  step time        {1e3 * self.expected_seconds:>9.1f} ms: the larger of "
                "computation at "
                f"{_REALISTIC_MFU:.0%} of the peak "
                f"({1e3 * self.compute_seconds / _REALISTIC_MFU:.1f} ms) and "
                f"collectives at the links' full speed ({1e3 * self.collective_seconds:.1f} ms)"
            )
            lines.append(
                f"  at least         {1e3 * self.bound_seconds:>9.1f} ms: the same at 100 % of the "
                "peak"
            )
        lines.append(
            "fits"
            if self.fits
            else "does not fit: raise mesh.fsdp or train.microbatches, or take a larger slice"
        )
        return "\n".join(lines)


def compile_check(config: Config, topology: str) -> CompileReport:
    """Compiles a run's step for a TPU topology such as `v5e:4x4`, on a machine without a TPU.

    Raises:
      UserError: the topology cannot be compiled for, or the mesh does not fit it.
    """
    devices = topology_devices(topology)
    sizes = check_mesh(
        config.mesh,
        batch_size=config.data.batch_size,
        microbatches=config.train.microbatches,
        num_devices=len(devices),
    )
    setup = make_setup(config, make_mesh(sizes, devices))
    chip = CHIPS[topology.partition(":")[0]]
    by_kind: dict[str, int] = collections.defaultdict(int)
    found: list[Collective] = []
    temporaries: int | None = None
    parameters, optimizer = (
        device_bytes(setup.abstract.params),
        device_bytes(setup.abstract.opt_state),
    )
    try:
        compiled = compile_step(setup)
    except Exception as error:
        needed = _bytes_of_refusal(str(error), parameters + optimizer)
        if needed is None:
            raise
    else:
        memory = compiled.memory_analysis()
        temporaries = memory.temp_size_in_bytes
        kept = (
            memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        )
        needed = kept + temporaries + memory.generated_code_size_in_bytes
        found = collectives(compiled.as_text())
        for one in found:
            by_kind[one.kind] += one.bytes * one.times
    tokens = config.data.batch_size * config.data.seq_len
    flops = (
        step_flops_per_token(
            config, setup.nest, static_sub_models(setup), num_mixes(setup), setup.teacher
        )
        * tokens
    )
    flops /= setup.mesh.size
    return CompileReport(
        topology=topology,
        mesh=sizes,
        hbm_bytes=chip.hbm_gb * 1e9,
        parameter_bytes=parameters,
        optimizer_bytes=optimizer,
        temporary_bytes=temporaries,
        needed_bytes=needed,
        collective_bytes=dict(by_kind),
        flops=flops,
        compute_seconds=flops / (chip.tflops * 1e12),
        collective_seconds=collective_seconds(chip, found),
    )


def _bytes_of_refusal(message: str, kept: int) -> int | None:
    """What a compiler that refuses for want of memory says that it would have needed, beside the
    `kept` state.
    """
    for pattern, more in (
        (r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", 0),
        (r"HLO temporaries \(([\d.]+)([KMGT])", kept),
    ):
        if found := re.search(pattern, message):
            return int(float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1)) + more
    return None
