"""Compiles the shipped configs for TPU slices, and prints the table of docs/pods.md.

    pip install -e '.[tpu]'
    python experiments/scale/compile_table.py

Each row is one `matta-compile-check`, in a process of its own: one to four minutes. Rows that
`compile_table.json` holds already are kept; delete the file to make all of them anew.
"""

import concurrent.futures
import dataclasses
import json
import math
import os
import pathlib
import runpy
import sys
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

_HERE = pathlib.Path(__file__).parent
_OUTPUT = _HERE / "compile_table.json"
# Config and variant, topology, microbatches; parameters are sharded over all chips.
ROWS = [
    ("gpt2_small", "v5e:4x4", 4),
    ("gpt2_small", "v5p:2x2x2", 4),
    ("gpt2_small", "v6e:2x4", 4),
    ("gpt2_medium", "v5e:4x4", 8),
    ("gpt2_medium", "v5p:2x2x2", 8),
    ("gpt2_medium", "v6e:2x4", 8),
    ("gpt_1b3", "v5e:8x8", 8),
    ("gpt_1b3", "v5p:2x2x4", 8),
    ("gpt_1b3", "v6e:4x4", 16),
    ("qwen3_0b6", "v5p:2x2x2", 8),
    ("qwen3_0b6", "v6e:2x4", 8),
    ("llama3_1b", "v5p:2x2x2", 8),
    ("llama3_8b", "v5p:2x4x4", 8),
    ("llama3_8b:shampoo", "v5p:2x4x4", 8),
    ("llama3_8b", "v6e:8x8", 4),
]


def measure(name: str, topology: str, microbatches: int) -> dict[str, Any]:
    """Returns the fields of one report."""
    from matta_jax import compile_check
    from matta_jax.config import from_config_dict

    stem, _, variant = name.partition(":")
    file = _HERE.parents[1] / "configs" / f"{stem}.py"
    get_config = runpy.run_path(str(file))["get_config"]
    config = from_config_dict(get_config(variant) if variant else get_config())
    config = dataclasses.replace(
        config,
        mesh=dataclasses.replace(config.mesh, data=1, fsdp=-1),
        train=dataclasses.replace(config.train, microbatches=microbatches),
    )
    report = compile_check(config, topology)
    return dataclasses.asdict(report) | {
        "tokens": config.data.batch_size * config.data.seq_len,
        "steps": config.train.num_steps,
        "expected_seconds": report.expected_seconds,
        "roof": report.roof,
        "fits": report.fits,
    }


def row_of(key: str, report: dict[str, Any]) -> str:
    """One line of the table."""
    name, topology, microbatches = key.split()

    def gigabytes(field: str) -> str:
        return "-" if report[field] is None else f"{report[field] / 1e9:.2f}"

    sizes = " | ".join(
        gigabytes(f"{kind}_bytes") for kind in ("parameter", "optimizer", "temporary")
    )
    needed = f"{gigabytes('needed_bytes')} of {report['hbm_bytes'] / 1e9:.0f}"
    if not report["fits"]:
        needed += " (no)"
    moved = f"{sum(report['collective_bytes'].values()) / 1e9:.1f}"
    speed = f"{report['tokens'] / report['expected_seconds'] / 1e6:.2f}"
    time = f"{1e3 * report['expected_seconds']:.0f}"
    hours = report["steps"] * report["expected_seconds"] / 3600
    run = f"{hours:.1f} | {hours * math.prod(report['mesh']):.0f}"
    return (
        f"| {name} | {topology} | {microbatches} | {sizes} | {needed} | {moved} | "
        f"{report['flops'] / 1e12:.0f} "
        f"| {time} | {report['roof']} | {speed} | {run} |"
    )


def main() -> None:
    """Makes the rows that are missing, then prints all."""
    done = json.loads(_OUTPUT.read_text()) if _OUTPUT.exists() else {}
    for name, topology, microbatches in ROWS:
        key = f"{name} {topology} {microbatches}"
        if key in done:
            continue
        print(f"compiling {key}", file=sys.stderr, flush=True)
        # The memory of a process goes with it.
        with concurrent.futures.ProcessPoolExecutor(max_workers=1) as pool:
            done[key] = pool.submit(measure, name, topology, microbatches).result()
        _OUTPUT.write_text(json.dumps(done, indent=2) + "\n")
    header = (
        "| config | slice | microbatches | parameters | optimiser | temporaries | HBM, GB | moved, "
        "GB | TFLOP | ms | roof "
        "| M tokens/s | run, hours | chip-hours |"
    )
    print(header)
    print((header.count("|") - 1) * "|---" + "|")
    for name, topology, microbatches in ROWS:
        key = f"{name} {topology} {microbatches}"
        print(row_of(key, done[key]))


if __name__ == "__main__":
    main()
