"""Where the time of our train step goes: its instructions as XLA's profiler saw them, by kind.

    python experiments/benchmarks/profile_step.py             # Student alone, size S
    python experiments/benchmarks/profile_step.py --joint     # with its TA

What a profiler tells is wall time: of each instruction the least of several steps counts. Beside it
the CPU-seconds of a step without it. Of another commit: copy this file into a worktree of it.
"""

import argparse
import collections
import dataclasses
import gzip
import json
import pathlib
import re
import tempfile

import harness  # isort: skip  (Pins the process before jax is imported.)

import jax
from joint_step import lower_step, random_batch, size_s, stepper

from matta_jax.sharding import make_mesh
from matta_jax.training import make_setup

_DOT, _MOVE = r"(ynn_fusion|dot)", r".*(copy|transpose|slice|pad|concatenate|bitcast)"
# Of an instruction's own name, and of the operation that it comes from; the first that fits.
KINDS = (
    ("the optimiser", r"", r"jit\(step\)/(?!jvp|transpose\(jvp)"),
    ("matrix products of the loss", _DOT, r".*(nd,vd|nv,vd|nv,nd)"),
    ("matrix products of layers", _DOT, r".*/(?!\.)[a-z]+,[a-z]+->[a-z]+/dot_general"),
    ("sums and maxima", r"(ynn_fusion|.*reduce)", r".*reduce_(sum|max)"),
    ("matrix products of attention", _DOT, r""),
    ("copies, transposes, slices", _MOVE, r""),
)


def profile(setup, rounds):
    """Returns the seconds of each instruction of a step, where each comes from, and a step's
    CPU-seconds.
    """
    program = lower_step(setup).compile()
    step = stepper(program, setup.init(), random_batch(setup))
    cpu = harness.interleave({"step": step}, rounds=rounds)["step"]
    traces = [_traced(step) for _ in range(rounds)]
    origins = dict(re.findall(r'%([\w.\-]+) = .*?op_name="([^"]*)"', program.as_text()))
    seconds = collections.Counter()
    for name in traces[0]:
        seconds[name] = min(trace[name] for trace in traces)
    return seconds, origins, harness.median_and_spread(cpu)


def _traced(step):
    """The seconds of each instruction of one step."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            step()
        file = next(pathlib.Path(folder).rglob("*.trace.json.gz"))
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    seconds = collections.Counter()
    for event in events:
        name = event.get("args", {}).get("hlo_op")
        is_instruction = event.get("ph") == "X" and name
        # The time of these is that of the instructions within them.
        if is_instruction and not name.startswith(("while", "conditional", "call")):
            seconds[name] += event["dur"] / 1e6
    return seconds


def kind_of(name, origin):
    """The kind of an instruction."""
    for kind, name_pattern, origin_pattern in KINDS:
        if re.match(name_pattern, name) and re.match(origin_pattern, origin):
            return kind
    return "elementwise"


def main():
    """Profiles, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--joint", action="store_true", help="Student and TA")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--most", type=int, default=0, help="list this many instructions too")
    parser.add_argument("--output", default="runs/benchmarks/profile_step.json")
    flags = parser.parse_args()
    config = size_s()
    if not flags.joint:
        config = dataclasses.replace(config, nest=dataclasses.replace(config.nest, d_ff=None))
    seconds, origins, cpu = profile(make_setup(config, make_mesh((1, 1, 1))), flags.rounds)

    by_kind = collections.Counter()
    for name, duration in seconds.items():
        by_kind[kind_of(name, origins.get(name, ""))] += duration

    total = sum(by_kind.values())
    rows = []
    for kind, duration in by_kind.most_common():
        rows.append({"what": kind, "s": duration, "share": duration / total})
    harness.print_table([*rows, {"what": "all", "s": total, "share": 1.0}])
    print(f"CPU-s of a step: {cpu[0]:.3g} ± {100 * cpu[1]:.0f} %")
    for name, duration in seconds.most_common(flags.most):
        origin = origins.get(name, "")
        print(f"{duration:.3f} {kind_of(name, origin)}: {name} {origin}")
    harness.write_results(flags.output, {"rows": rows, "CPU-s": cpu[0], "spread": cpu[1]})


if __name__ == "__main__":
    main()
