"""The engines: which formats they read, and how they are asked."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from matta_jax import storage
from matta_jax.errors import UserError, check_choice
from matta_jax.packages._packaging import HF_FORMATS


@dataclasses.dataclass(frozen=True)
class Engine:
    """A library that runs the files of models.

    Attributes:
      name: as users write it.
      modules: of Python, that must be installed.
      extra: of this project, which installs them.
      formats: that it reads; a model of another is written for it in the first.
      length: positions of a row of a certificate's batch.
      is_timed: whether milliseconds of it are measured.
      is_stock: whether it computes by classes of its own: of `hf` it reads what is padded, and that
        is what a model is written as that has no room in the first of its formats.
    """

    name: str
    modules: tuple[str, ...]
    extra: str
    formats: tuple[str, ...]
    length: int
    is_timed: bool = True
    is_stock: bool = False


# llama.cpp's server answers a prompt for each position, with all of its ids as text; vLLM makes an
# object of each id of a position.
ENGINES = {
    engine.name: engine
    for engine in (
        Engine("transformers", ("torch", "transformers"), "transformers", HF_FORMATS, 64),
        Engine("llama.cpp", ("xllamacpp",), "llama-cpp", ("gguf",), 16),
        Engine("vllm", ("vllm",), "vllm", ("vllm", "hf"), 32, is_timed=False, is_stock=True),
    )
}
"""By name."""
TIMED = [engine.name for engine in ENGINES.values() if engine.is_timed]
"""The names of those whose milliseconds are measured."""

_CHILD = str(storage.path(__file__).with_name("_child.py"))
_EXCEPTION = re.compile(r"[\w.]*(Error|Exception)\b")
# What an engine says of its end.
_MOST_LETTERS = 200
# What a user may do where an engine fails, by the field that names it.
_MENDS = {"certify": "write another format", "latency_engine": "name another engine"}


def installed_engine(name: str, field: str = "certify") -> Engine:
    """An engine by its name, which a field has. Raises UserError for an unknown one, or where it is
    not installed.
    """
    check_choice(field, name, list(ENGINES) if field == "certify" else TIMED)
    engine = ENGINES[name]
    # Looked for and not imported: it runs in a process by itself.
    for module in engine.modules:
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"{field}={name!r} needs the package {module}: pip install "
                f"'matta_jax[{engine.extra}]'"
            )
    return engine


@dataclasses.dataclass(frozen=True)
class Answer:
    """What an engine computed.

    Attributes:
      version: of the engine.
      parameters: of the model, as the engine counts them.
      log_probs: after each position [B, T, V].
    """

    version: str
    parameters: int
    log_probs: np.ndarray


def ask(engine: Engine, request: Mapping[str, Any]) -> Answer:
    """Asks an engine in a process by itself.

    Args:
      engine: which.
      request: `folder` and `file` of the model, `ids` [B, T], `vocab_size`; for transformers
        and vLLM `runs_code`, whether it may run the folder's code; for llama.cpp `token`, whose
        text is not empty.

    Raises:
      UserError: the engine does not run the files.
    """
    about, log_probs = run_child(engine, {"task": "log_probs", **request}, "certify")
    return Answer(str(about["version"]), int(about["parameters"]), log_probs)


def run_child(
    engine: Engine, request: Mapping[str, Any], field: str
) -> tuple[dict[str, Any], np.ndarray]:
    """Runs an engine in a process by itself; returns what it says, and its numbers.

    Args:
      engine: which.
      request: as `_child.py` reads it.
      field: whose value names the engine.

    Raises:
      UserError: the engine does not run the files.
    """
    # Nothing is fetched: all that a model needs lies in its folder.
    settings = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with storage.scratch_folder() as cache:
        # Code of a folder would be copied to the user's cache, and stay there.
        settings["HF_MODULES_CACHE"] = str(cache)
        completed = subprocess.run(
            # `-P`: what lies in the folder of the child is not in the place of libraries.
            [sys.executable, "-P", _CHILD],
            input=json.dumps({"engine": engine.name, **request}).encode(),
            capture_output=True,
            env={**os.environ, **settings},
            check=False,
        )
    if completed.returncode != 0:
        raise UserError(
            f"{field}={engine.name!r}: {engine.name} does not run the model's files "
            f"({_reason(completed)}); leave {field} out, or {_MENDS[field]}"
        )
    header, _, numbers = completed.stdout.partition(b"\n")
    about = json.loads(header)
    return about, np.frombuffer(numbers, np.float32).reshape(about["shape"])


def _reason(completed: subprocess.CompletedProcess[bytes]) -> str:
    """The last that a process said, or the signal that ended it."""
    if completed.returncode < 0:
        return f"ended by signal {-completed.returncode}"
    lines = completed.stderr.decode(errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    # A server goes on logging behind the exception that ended it.
    raised = [line for line in said if _EXCEPTION.match(line)]
    code = f"exit code {completed.returncode}"
    return f"{code}; {(raised or said)[-1][:_MOST_LETTERS]}" if said else code
