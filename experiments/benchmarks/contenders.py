"""Contenders that run in processes of their own, each in its own environment, and take turns on one
pinned core.

A contender is a script of `peers/`. It loads the same weights, and answers each line of its
standard input by one step: CPU-seconds, loss, and the peak of its resident memory. Import harness
before this module: children inherit the core.
"""

import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import harness

PEERS = pathlib.Path(__file__).parent / "peers"
ENVIRONMENTS = pathlib.Path("~/.cache/matta_jax_benchmarks").expanduser()
TORCH = ("torch>=2.6,<3", "transformers>=5,<6", "numpy>=2")
PYTHON = sys.executable
SIZE_S = {"num_layers": 6, "d_model": 256, "num_heads": 4, "d_ff": 1024, "max_len": 256}
LLAMA_S = SIZE_S | {"num_kv_heads": 2, "d_ff": 704}
"""As many weights in a layer, about: its MLP has three matrices."""


def environment(name: str, packages: Sequence[str], *, install: bool) -> str | None:
    """Returns the Python of a virtual environment with these packages; None, and a line, where it
    cannot be made.
    """
    folder = ENVIRONMENTS / name
    python, done = folder / "bin" / "python", folder / "complete"
    if not done.exists() and install:
        try:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
            done.touch()
        except subprocess.CalledProcessError as error:
            print(
                f"skipped: {name} ({' '.join(map(str, error.cmd[-4:]))} ended with "
                f"{error.returncode})"
            )
            return None
    if not done.exists():
        print(
            f"skipped: {name} (add --install_peers, which installs {', '.join(packages)} under "
            f"{folder})"
        )
        return None
    return str(python)


def checkout(folder: str | None, name: str, address: str) -> str | None:
    """Returns the folder of a peer's public code; None, and a line, where the user has not named
    one.
    """
    if folder is None:
        print(f"skipped: {name} (git clone {address}, and name its folder by --{name})")
    return folder


class Contender:
    """A child that steps when it is told to."""

    def __init__(
        self, python: str, script: str, sizes: Mapping[str, Any], weights: str, *flags: str
    ):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  It lives as long as the child.
        self._child = subprocess.Popen(
            [python, str(PEERS / script), json.dumps(sizes), weights, *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ
            | {
                "OMP_NUM_THREADS": "1",
                "MKL_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
        )

        self._is_ready = False

    def ready(self) -> None:
        """Waits until the child has loaded what it needs."""
        if not self._is_ready:
            self._answer()
            self._is_ready = True

    def step(self) -> dict[str, Any]:
        """Runs one step; returns `seconds` of CPU time, `peak_mb`, `loss` and what else the script
        tells.
        """
        self.ready()
        assert self._child.stdin is not None
        self._child.stdin.write("step\n")
        self._child.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise RuntimeError(f"{self._child.args} ended: {self._errors.read()[-2000:]}")
        return json.loads(line)

    def close(self) -> None:
        """Ends the child."""
        self._child.kill()
        self._child.wait()
        self._errors.close()


WARM_UP = 2
"""Steps before the first that counts."""


def take_turns(
    contenders: Mapping[str, Contender], *, rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """Returns what each contender said of its `WARM_UP` first steps and of `rounds` more; a round
    runs each once.
    """
    for contender in contenders.values():
        contender.ready()

    steps_of: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for _ in range(WARM_UP + rounds):
        for name, contender in contenders.items():
            steps_of[name].append(contender.step())
    return steps_of


def check_losses(steps_of: Mapping[str, Sequence[Mapping[str, Any]]], field: str = "loss") -> None:
    """Raises unless all have the first one's losses: 1e-4 at the same weights, 1e-3
    after a step.
    """
    first = next(iter(steps_of.values()))
    for name, steps in steps_of.items():
        for step, expected, tolerance in zip(steps[:WARM_UP], first, (1e-4, 1e-3), strict=False):
            if not math.isclose(step[field], expected[field], rel_tol=tolerance):
                raise RuntimeError(
                    f"{name} has {field} {step[field]}, and must have {expected[field]}"
                )


def rows_of(steps_of: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The table: of each contender its time and memory, and how many times ours those are; ours is
    the first.
    """
    rows: list[dict[str, Any]] = []
    for name, steps in steps_of.items():
        counted = steps[WARM_UP:]
        seconds, spread = harness.median_and_spread([step["seconds"] for step in counted])
        peak = max(step["peak_mb"] for step in counted)
        row = {
            "contender": name,
            "first loss": steps[0]["loss"],
            "CPU-s": seconds,
            "spread": spread,
            "peak RSS, MB": peak,
        }

        ours = rows[0] if rows else row
        row["time / ours"] = seconds / ours["CPU-s"]
        row["RSS / ours"] = peak / ours["peak RSS, MB"]
        rows.append(row)
    return rows
