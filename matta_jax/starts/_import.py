"""Models from elsewhere become ours: Hugging Face folders."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from matta_jax import config as config_lib
from matta_jax import storage
from matta_jax.config import Config, DataConfig, ModelConfig
from matta_jax.errors import UserError
from matta_jax.models import Architecture, abstract_params, logical_axes
from matta_jax.nesting import Tree, flatten, unflatten
from matta_jax.packages import (
    Package,
    Packaging,
    architecture_of_hf,
    check_target,
    new_folder,
    open_model,
    readers,
    write_package,
)
from matta_jax.tokenizers import TOKENIZER, make_tokenizer, resolved_tokenizer

# OpenAI's names of the files of a GPT-2 tokenizer, which ours reads, by those of Hugging Face.
_GPT2_NAMES = {"merges.txt": "vocab.bpe", "vocab.json": "encoder.json"}


def import_hf(
    folder: str | storage.Path,
    output: str | storage.Path,
    *,
    tokenizer: str | None = None,
    packaging: Packaging | None = None,
) -> Package:
    """Makes a model of ours from a Hugging Face GPT-2 folder: config.json and safetensors; no
    torch, no network.

    Args:
      folder: the Hugging Face model.
      output: the folder of the model.
      tokenizer: as `data.tokenizer`; None for that in the folder (tokenizer.json, or vocab.json and
        merges.txt).
      packaging: format and type.

    Raises:
      UserError: files or tensors are missing or damaged, or belong to another model than GPT-2.
    """
    packaging = packaging or Packaging()
    source, target = storage.resolve(folder), storage.resolve(output)
    architecture = architecture_of_hf(source)
    names = flatten(logical_axes(architecture))
    reads = readers(source, architecture, names)
    check_target(target, overwrite=packaging.overwrite)
    if packaging.with_optimizer:
        raise UserError(
            "with_optimizer: a Hugging Face folder holds no optimiser state; import without it"
        )

    params = _read(source, architecture, reads)
    with new_folder(target) as building:
        spec = tokenizer or _keep_tokenizer(source, building)
        eos_id = _checked_eos_id(source, building, spec, tokenizer, architecture)
        about = {
            "parent": {"hf": str(source)},
            "spec": source.name,
            "config": config_lib.to_dict(_config(architecture, spec)),
            "scores": [],
        }
        write_package(building, params, architecture, packaging, about, eos_id=eos_id)
    return open_model(target)


def _read(source: storage.Path, architecture: Architecture, reads: Mapping[str, Any]) -> Tree:
    """Reads all weights, in float32. Raises UserError for damaged files and weights."""
    shapes = {path: leaf.shape for path, leaf in flatten(abstract_params(architecture)).items()}
    try:
        # What overflows becomes infinite, and is named below.
        with np.errstate(over="ignore"):
            flat = {
                path: jnp.asarray(read((slice(None),) * len(shapes[path])).astype(np.float32))
                for path, read in reads.items()
            }
    except UserError:
        raise
    except Exception as error:  # safetensors raises many kinds for damaged files.
        detail = " ".join(str(error).split())[:160]
        raise UserError(f"{str(source)!r} is damaged ({detail}); fetch the model again") from None

    # A file may be whole, and yet hold weights of a training that diverged.
    for path, leaf in flat.items():
        if not bool(jnp.isfinite(leaf).all()):
            raise UserError(
                f"{str(source)!r}: {path} holds numbers that are not finite in float32; fetch the "
                "model again"
            )
    return unflatten({path: flat[path].reshape(shape) for path, shape in shapes.items()})


def _config(architecture: Architecture, tokenizer: str) -> Config:
    """The config that an imported model has in place of its run's."""
    model = ModelConfig(
        vocab_size=architecture.vocab_size,
        max_len=architecture.max_len,
        num_layers=architecture.num_layers,
        d_model=architecture.d_model,
        num_heads=architecture.d_model // architecture.head_dim,
        d_ff=architecture.sub_model.largest("d_ff"),
    )
    data = DataConfig(tokenizer=tokenizer, seq_len=min(1024, architecture.max_len))
    return Config(model=model, data=data)


def _checked_eos_id(
    source: storage.Path,
    building: storage.Path,
    spec: str,
    named: str | None,
    architecture: Architecture,
) -> int:
    """The end-of-text id of the model's tokenizer.

    Raises:
      UserError: the tokenizer cannot be used, or knows more ids than the model.
    """
    try:
        tokenizer = make_tokenizer(resolved_tokenizer(spec, building))
    except UserError as error:
        if named is not None:
            raise
        raise UserError(
            f"{str(source)!r}: its tokenizer cannot be used "
            f"({_of_source(error, source, building)}); name one by --tokenizer"
        ) from None
    if tokenizer.vocab_size > architecture.vocab_size:
        whose = f"tokenizer={named!r}" if named else f"the tokenizer in {str(source)!r}"
        raise UserError(
            f"{whose} has {tokenizer.vocab_size} ids, but the model a vocabulary of "
            f"{architecture.vocab_size}; name the model's own by --tokenizer"
        )
    return tokenizer.eos_id


def _of_source(error: UserError, source: storage.Path, building: storage.Path) -> str:
    """What is wrong with a copy of a tokenizer, said of the user's own files: the folder that is
    being built is gone when the user reads this.
    """
    detail = str(error).replace(str(building / TOKENIZER), str(source)).partition(";")[0]
    for hf_name, name in _GPT2_NAMES.items():
        detail = detail.replace(name, hf_name)
    return detail


def _keep_tokenizer(source: storage.Path, building: storage.Path) -> str:
    """Copies a Hugging Face folder's tokenizer into the model's; returns its spec."""
    place = building / TOKENIZER
    if (source / "tokenizer.json").is_file():
        storage.make_folder(place)
        storage.copy_file(source / "tokenizer.json", place / "tokenizer.json")
        return f"hf:./{TOKENIZER}/tokenizer.json"

    if all((source / hf_name).is_file() for hf_name in _GPT2_NAMES):
        storage.make_folder(place)
        for hf_name, name in _GPT2_NAMES.items():
            storage.copy_file(source / hf_name, place / name)
        return f"gpt2:./{TOKENIZER}"
    raise UserError(
        f"{str(source)!r} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt); name "
        "one, such as --tokenizer=gpt2:FOLDER or --tokenizer=byte"
    )
