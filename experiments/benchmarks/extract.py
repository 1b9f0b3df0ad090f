"""Extraction from a checkpoint of about 2 GiB: bytes read, memory, time (benchmark 9).

    python experiments/benchmarks/extract.py --output=/tmp/extract.json

Each contender runs in a process of its own, alternating; a first round warms the page cache and is
left out. Times are wall seconds of the call after all imports, since reading is what is measured;
CPU-seconds stand beside them. Memory is the growth of the resident peak during the call; bytes are
those that the process asked the system to read.
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import harness

UNIFORM = ["d_ff=2048", "d_ff=4096"]
MIX = "d_ff=8192,2048,4096,2048,2048,4096,2048,8192"
FAMILY = [
    *UNIFORM,
    MIX,
    *(f"layers={n};d_ff=2048" for n in range(1, 8)),
    "layers=4;d_ff=4096",
    "layers=6;d_ff=4096",
]
FAMILY += [f"d_ff={','.join(['4096'] * n + ['2048'] * (8 - n))}" for n in (1, 3, 5, 7)]
SMALL = "layers=1;d_ff=2048"
OTHER_NEST = {"d_model": "d_model=512;num_heads=8;d_ff=2048", "depth": "layers=3"}


def make_checkpoint(folder: pathlib.Path, *, d_model: bool) -> None:
    """Writes the state of a run of 8 layers, d_model 1024 and d_ff 2048 to 8192, without training
    it.
    """
    import jax

    from matta_jax import config as c
    from matta_jax.checkpoints import Checkpoints
    from matta_jax.sharding import check_mesh, make_mesh
    from matta_jax.training import make_setup

    student = {"d_model": 512, "num_heads": 8} if d_model else {"d_model": 1024, "num_heads": 16}
    config = c.Config(
        model=c.ModelConfig(vocab_size=8192, num_layers=8, d_ff=2048, max_len=256, **student),
        nest=c.NestConfig(d_model=1024, num_heads=16, d_ff=8192, widths=(2048, 4096, 8192)),
    )
    sizes = check_mesh(config.mesh, batch_size=16, microbatches=1, num_devices=1)
    setup = make_setup(config, make_mesh(sizes))
    state = setup.init()

    # The moments of a fresh run are zeros, which a file may hold in fewer bytes than a run's.
    def fill(leaf):
        return jax.random.normal(jax.random.key(leaf.size), leaf.shape) if leaf.ndim else leaf

    opt_state = jax.tree.map(fill, state.opt_state)
    trees = {"params": state.params, "opt_state": opt_state, "step": {"step": state.step}}
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(0, trees, {"config": c.to_dict(config)}, loss=1.0, units=setup.units)


def _counted() -> int:
    return int(pathlib.Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def _peak() -> int:
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def _resident() -> int:
    return int(pathlib.Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) * 1024


def run_contender(name: str, checkpoint: str, specs: list[str]) -> dict:
    """Runs one call in this process and measures it."""
    import jax

    from matta_jax import elastic
    from matta_jax.checkpoints import Checkpoints, on_one_device, open_source
    from matta_jax.nesting import parse_spec, slice_model

    jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))
    # On the disk of the checkpoint, but of a bucket.
    disk = None if "://" in checkpoint else checkpoint
    output = pathlib.Path(tempfile.mkdtemp(dir=disk)) / "out"
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before, resident = _counted(), _resident()
    clock, cpu = time.perf_counter(), time.process_time()
    if name == "restore_and_slice":
        source = open_source(checkpoint)
        with Checkpoints(source.directory, read_only=True) as checkpoints:
            params = checkpoints.restore(source.step, {"params": on_one_device(source.abstract)})[
                "params"
            ]
        sliced = [slice_model(params, source.axes, parse_spec(spec, source.nest)) for spec in specs]
        sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in sliced]
    elif name == "read":
        source = open_source(checkpoint)
        sizes = []
        for tree in source.read_many([parse_spec(spec, source.nest) for spec in specs]):
            sizes.append(sum(leaf.nbytes for leaf in jax.tree.leaves(tree)))
    else:
        sizes = [model.counts.bytes for model in elastic.extract(checkpoint, specs, output)]
    result = {
        "seconds": time.perf_counter() - clock,
        "cpu_seconds": time.process_time() - cpu,
        "bytes_read": _counted() - before,
        "peak_growth": _peak() - resident,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "model_bytes": sizes,
    }
    shutil.rmtree(output.parent)
    return result


def cases() -> dict[tuple[str, str], tuple[str, str, list[str]]]:
    """Returns, by what a row is named, the kind of checkpoint, the contender and its specs."""
    result: dict[tuple[str, str], tuple[str, str, list[str]]] = {}
    for spec in (*UNIFORM, MIX):
        for way in ("restore_and_slice", "read", "extract"):
            result[spec, way] = ("layer", way, [spec])
    for kind, spec in OTHER_NEST.items():
        checkpoint = "layer" if kind == "depth" else kind
        result[spec, "read"] = (checkpoint, "read", [spec])
    for way in ("read", "extract"):
        result[f"{len(FAMILY)} models", way] = ("layer", way, FAMILY)
    return result


def row_of(spec: str, way: str, runs: list[dict]) -> dict:
    """Returns a row of the table: medians over rounds."""

    def median(field: str) -> float:
        return statistics.median(run[field] for run in runs)

    sizes = runs[0]["model_bytes"]
    return {
        "spec": spec,
        "way": way,
        "model_mb": sum(sizes) / 1e6,
        "seconds": median("seconds"),
        "cpu_seconds": median("cpu_seconds"),
        "bytes_read_per_byte": median("bytes_read") / sum(sizes),
        "peak_growth_mb": median("peak_growth") / 1e6,
        "beyond_model_mb": (median("peak_growth") - max(sizes)) / 1e6,
    }


def main() -> None:
    """Makes the checkpoints, runs the contenders and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="extract.json")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder", default=None, help="Where the checkpoints lie; made when absent."
    )
    parser.add_argument("--contender", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        name, checkpoint, *specs = args.contender
        print(json.dumps(run_contender(name, checkpoint, specs)))
        return
    folder = pathlib.Path(args.folder or tempfile.mkdtemp())
    for kind in ("layer", "d_model"):
        if not (folder / kind / "checkpoints").is_dir():
            make_checkpoint(folder / kind, d_model=kind == "d_model")

    results: dict = {key: [] for key in cases()}
    for turn in range(args.rounds + 1):
        for key, (kind, way, specs) in cases().items():
            command = [sys.executable, __file__, "--contender", way, str(folder / kind), *specs]
            child = subprocess.run(
                command, check=True, capture_output=True, text=True, env=os.environ
            )
            if turn:
                results[key].append(json.loads(child.stdout.splitlines()[-1]))

    rows = [row_of(spec, way, runs) for (spec, way), runs in results.items()]
    harness.print_table(rows)
    harness.write_results(args.output, {"rows": rows})


if __name__ == "__main__":
    main()
