"""Certificates across engines: the files of a model, run by the engine that serves them, give the
log-probabilities that we compute.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.models import Architecture
from matta_jax.packages._formats import check_format
from matta_jax.packages._manifest import record_engines
from matta_jax.packages._model import Model
from matta_jax.packages._package import Package, open_model
from matta_jax.packages._packaging import HF_FORMATS, K_QUANTS, Packaging
from matta_jax.packages._write import write_again
from matta_jax.packages.engines._engine import Answer, Engine, ask, installed_engine
from matta_jax.packages.engines._request import request_of
from matta_jax.packages.gguf import kind_of
from matta_jax.packages.gguf import num_parameters as gguf_parameters
from matta_jax.packages.hf import open_hf, tensor_shapes

BATCH = 2
# Fixed: a certificate that is made again is the same.
_SEED = 0

# Differences of log-probabilities that are let pass, as shares of the largest logit. The largest
# one, where an engine computes in float32 too, and sums in another order.
_EXACT = 5e-5
# llama.cpp's GELU is a table of half precision.
_EXACT_OF_GPT2 = 3e-3
# The mean one, where llama.cpp's kernels round what comes into a matrix: a few ids drawn at random
# have differences of twenty times that.
_BLOCKS = ("q8_0", "q5_0", "q4_0", *K_QUANTS)
_MEAN = {"f16": 2e-3, "bf16": 1e-2, **dict.fromkeys(_BLOCKS, 3e-2)}


def certify(folder: str | storage.Path, engines: Sequence[str]) -> Package:
    """Runs the files of a model in engines, and records in its manifest and card how far their
    log-probabilities are from ours in float32, on a fixed batch of ids.

    A model of a format that an engine does not read is written for it in one that it does, and that
    is removed again.

    Args:
      folder: of the model.
      engines: names among `transformers`, `llama.cpp` and `vllm`.

    Returns:
      The model, opened; `manifest["engines"]` has the certificates.

    Raises:
      UserError: an engine is not installed, does not run the files, counts other parameters than
        they hold, or differs by more than the limit of their numbers.

    Examples:
      >>> package = matta_jax.certify("exported/gguf", ["llama.cpp"])
      >>> list(package.manifest["engines"])
      ['llama.cpp']
    """
    package = open_model(folder)
    packaging = Packaging(package.manifest["format"], package.manifest["dtype"])
    check_engines(engines, packaging, package.architecture)
    certify_folder(package.path, engines)
    return open_model(folder)


def check_engines(names: Sequence[str], packaging: Packaging, architecture: Architecture) -> None:
    """Raises UserError, before anything is written, for engines that cannot run a model."""
    for name in names:
        engine = installed_engine(name)
        if architecture.table_path is None:
            raise UserError(
                f"certify={name!r} is for language models, and this model is of the family "
                f"{architecture.family_name!r}; leave it out"
            )
        if packaging.format not in engine.formats or engine.is_stock:
            check_format(_packaging_for(engine, packaging.dtype, architecture), architecture)


def certify_folder(folder: storage.Path, names: Sequence[str]) -> None:
    """Certifies a model, which may be one that is still being built; as `certify`, for engines that
    were checked.
    """
    if not names:
        return
    package = open_model(folder)
    model = package.load()
    certificates = {}
    for name in dict.fromkeys(names):
        engine = installed_engine(name)
        # llama.cpp's server has no room for a prompt of all positions.
        length = min(engine.length, max(1, package.architecture.max_len - 1))
        shape = (BATCH, length)
        ids_BT = np.random.default_rng(_SEED).integers(0, package.architecture.vocab_size, shape)
        logits_BTV = _logits(model, ids_BT)
        with _in_format(package, engine) as written:
            request = request_of(engine, written) | {"ids": ids_BT.tolist()}
            answer = ask(engine, request)
            certificates[name] = _certificate(engine, written, logits_BTV, answer)
    record_engines(folder, certificates)


def _logits(model: Model, ids_BT: np.ndarray) -> np.ndarray:
    """Ours [B, T, V], in float32 on the CPU: other devices round what they multiply."""
    host = jax.local_devices(backend="cpu")[0]
    with jax.default_device(host), jax.default_matmul_precision("highest"):
        logits = model.logits(model.params, jax.numpy.asarray(ids_BT))
    return np.asarray(logits).reshape(*ids_BT.shape, -1)


def _packaging_for(engine: Engine, dtype: str, architecture: Architecture) -> Packaging:
    """How a model of another format is written for an engine."""
    first = Packaging(engine.formats[0], dtype)
    if not engine.is_stock:
        return first
    with contextlib.suppress(UserError):
        check_format(first, architecture)
        return first
    return Packaging("hf", dtype, pad=True)


def _reads(engine: Engine, package: Package) -> bool:
    """Whether an engine reads the files of a model as they are."""
    if package.manifest["format"] not in engine.formats:
        return False
    return not engine.is_stock or bool(open_hf(package.path).layout.serving)


@contextlib.contextmanager
def _in_format(package: Package, engine: Engine) -> Iterator[Package]:
    """Yields the model in a format that an engine reads, on the local disk."""
    is_read = _reads(engine, package)
    if is_read and not storage.in_bucket(package.path):
        yield package
        return
    with storage.scratch_folder() as scratch:
        folder = scratch / "model"
        storage.make_folder(folder)
        if is_read:
            for file in storage.match(package.path, "*"):
                storage.copy_file(file, folder / file.name)
            # Its tokenizer lies in a folder below, which stays where it is.
            yield dataclasses.replace(package, path=folder)
            return
        packaging = _packaging_for(engine, package.manifest["dtype"], package.architecture)
        write_again(folder, package, packaging)
        yield open_model(folder)


def _num_parameters(package: Package) -> int:
    """Numbers in the files, the zeros of padding among them."""
    if package.manifest["format"] in HF_FORMATS:
        layout = open_hf(package.path).layout
        shapes = tensor_shapes(layout, package.architecture)
        return sum(math.prod(shape) for shape in shapes.values())
    return gguf_parameters(package.architecture)


def _certificate(
    engine: Engine, package: Package, logits_BTV: np.ndarray, answer: Answer
) -> dict[str, Any]:
    """What a manifest says of an engine. Raises UserError where it computes something else."""
    stored = _num_parameters(package)
    if answer.parameters != stored:
        raise UserError(
            f"certify={engine.name!r}: {engine.name} counts {answer.parameters:,} parameters, and "
            f"the files hold {stored:,}; this is a defect, please report it"
        )

    differences_BTV = np.abs(_log_softmax(answer.log_probs) - _log_softmax(logits_BTV))
    # Not a number is no agreement.
    differences_BTV = np.nan_to_num(differences_BTV, nan=np.inf)
    differences = {"max": float(differences_BTV.max()), "mean": float(differences_BTV.mean())}
    largest_logit = float(np.abs(logits_BTV).max())
    numbers = package.manifest.get("numbers", package.manifest["dtype"])
    measure, share = _limit(engine, package, numbers)
    limit = share * max(1.0, largest_logit)
    if not differences[measure] <= limit:
        how = "at most" if measure == "max" else "on average"
        raise UserError(
            f"certify={engine.name!r}: log-probabilities of {engine.name} {answer.version} differ "
            f"by {differences[measure]:.3g} {how} from ours, and {limit:.3g} is the limit of "
            f"{numbers} at logits of up to {largest_logit:.3g}; this is a defect, please report it"
        )
    return {
        "version": answer.version,
        "format": package.manifest["format"],
        "numbers": numbers,
        "batch": list(logits_BTV.shape[:2]),
        "max_difference": differences["max"],
        "mean_difference": differences["mean"],
        "limit": limit,
        "limit_of": measure,
        "largest_logit": largest_logit,
        "parameters": answer.parameters,
    }


def _limit(engine: Engine, package: Package, numbers: str) -> tuple[str, float]:
    """Which difference has a limit, and that as a share of the largest logit."""
    # In float32, whatever the files hold.
    if engine.formats != ("gguf",):
        return "max", _EXACT
    if numbers in _MEAN:
        return "mean", _MEAN[numbers]
    return "max", _EXACT_OF_GPT2 if kind_of(package.architecture).name == "gpt2" else _EXACT


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    """In float64: a server sums up a vocabulary in float32, and a constant cancels here."""
    shifted = scores.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
