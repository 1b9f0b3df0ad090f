"""K-quants: types of GGUF files that llama.cpp's own quantiser writes, and nothing else does.

It is a program, `llama-quantize`, or a function of the package cyllama; either runs in a process by
itself. Which type each matrix gets is its decision, so that what a file gives back, and how many
bytes it has, is known once it is written.
"""

import importlib.util
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.packages._packaging import K_QUANTS
from matta_jax.packages.gguf._file import GGUFFile

_PROGRAM = "llama-quantize"
_PACKAGE = "cyllama"
_BY_PACKAGE = """
import sys
from cyllama.llama.llama_cpp import LlamaModelQuantizeParams, model_quantize

settings = LlamaModelQuantizeParams()
settings.ftype = int(sys.argv[3])
model_quantize(sys.argv[1], sys.argv[2], settings)
"""
# Numbers that share a scale of scales. Of rows that it does not divide llama.cpp takes blocks of
# 32.
_BLOCK = 256
# The root mean square of what rounding takes from a matrix, of its own at most: about twice what
# normal numbers lose. A tensor that stands under another's name is 1.4 of it away.
_MOST_LOST = {
    "q2_k": 0.6,
    "q3_k_m": 0.3,
    "q4_k_s": 0.16,
    "q4_k_m": 0.16,
    "q5_k_s": 0.08,
    "q5_k_m": 0.08,
    "q6_k": 0.04,
}


def quantiser(type_name: str) -> list[str]:
    """The command of llama.cpp's quantiser, before its arguments. Raises UserError where it is not
    installed.
    """
    program = shutil.which(_PROGRAM)
    if program is not None:
        return [program]
    if importlib.util.find_spec(_PACKAGE) is None:
        raise UserError(
            f"quantize={type_name!r} is written by llama.cpp's own quantiser, the program "
            f"{_PROGRAM} or the package {_PACKAGE}: pip install 'matta_jax[k-quants]'"
        )
    return [sys.executable, "-P", "-c", _BY_PACKAGE]


def quantise_file(source: storage.Path, target: storage.Path, type_name: str) -> None:
    """Lets llama.cpp's quantiser write a file again, its matrices in a type of `K_QUANTS`.

    Args:
      source: a file in float32.
      target: the new one.
      type_name: of `K_QUANTS`.

    Raises:
      UserError: it is not installed, or fails.
    """
    command = quantiser(type_name)
    number = str(K_QUANTS[type_name])
    mend = "take another type, such as --quantize=q4_0"
    try:
        completed = subprocess.run(
            [*command, str(source), str(target), number], capture_output=True, check=False
        )
    except OSError as error:
        raise UserError(
            f"quantize={type_name!r}: {command[0]} does not start ({error.strerror}); {mend}"
        ) from None
    if completed.returncode != 0 or not target.is_file():
        said = completed.stderr.decode(errors="replace").strip().split("\n")[-1]
        raise UserError(
            f"quantize={type_name!r}: llama.cpp's quantiser ended with exit code "
            f"{completed.returncode} ({said[:200]}); {mend}"
        )


def check_loss(name: str, values: np.ndarray, original: np.ndarray, type_name: str) -> None:
    """Raises UserError where a file gives back a weight that is not the one that was written.

    Args:
      name: of the weight.
      values: as the file gives it back.
      original: as it was.
      type_name: of the file.
    """
    original = np.asarray(original, np.float32)
    scale = np.sqrt(np.mean(np.square(original, dtype=np.float64)))
    lost = np.sqrt(np.mean(np.square(values - original, dtype=np.float64)))
    # Written so that it refuses NaN too.
    limit = _MOST_LOST[type_name]
    if not lost <= limit * scale:
        raise UserError(
            f"quantize={type_name!r}: tensor {name} comes back {lost / scale:.2g} of its size "
            f"away, and {limit} is the limit; take another type, such as --quantize=q8_0"
        )


def tensor_bytes(file: storage.Path) -> int:
    """Bytes of all tensors of a file."""
    return sum(int(tensor.n_bytes) for tensor in GGUFFile(file).tensors.values())


def types_note(file: GGUFFile) -> str | None:
    """What people should know of a file's types; None where all of its matrices have that which was
    asked for.
    """
    if file.fields.get("general.file_type") not in K_QUANTS.values():
        return None
    matrices = [tensor for tensor in file.tensors.values() if len(tensor.shape) > 1]
    counts = Counter(tensor.tensor_type.name for tensor in matrices)
    # Positions stay exact in files of all types.
    wider = {name: count for name, count in counts.items() if name != "F32" and name[-1] != "K"}
    if not wider:
        return None
    types = ", ".join(f"{count} of {name}" for name, count in sorted(wider.items()))
    return (
        f"{sum(wider.values())} of {len(matrices)} matrices are no K-quants ({types}): {_BLOCK} "
        "does not divide their rows, and llama.cpp's quantiser took blocks of 32."
    )
