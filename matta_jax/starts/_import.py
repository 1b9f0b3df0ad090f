"""Models from elsewhere become ours: Hugging Face folders."""

import pathlib
import shutil

import jax.numpy as jnp

from matta_jax import config as config_lib
from matta_jax.config import Config, DataConfig, ModelConfig
from matta_jax.errors import UserError
from matta_jax.models import abstract_params, logical_axes
from matta_jax.nesting import flatten, unflatten
from matta_jax.packages import (
    TOKENIZER,
    Package,
    Packaging,
    architecture_of_hf,
    check_target,
    new_folder,
    open_model,
    readers,
    resolved_tokenizer,
    write_package,
)


def import_hf(
    folder: str | pathlib.Path,
    output: str | pathlib.Path,
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
    source, target = pathlib.Path(folder).resolve(), pathlib.Path(output).resolve()
    architecture = architecture_of_hf(source)
    axes = flatten(logical_axes(architecture))
    reads = readers(source, architecture, axes)
    shapes = flatten(abstract_params(architecture))
    check_target(target, overwrite=packaging.overwrite)
    if packaging.with_optimizer:
        raise UserError(
            "with_optimizer: a Hugging Face folder holds no optimiser state; import without it"
        )
    try:
        flat = {
            path: jnp.asarray(read((slice(None),) * len(axes[path])), jnp.float32)
            for path, read in reads.items()
        }
    except UserError:
        raise
    except Exception as error:  # safetensors raises many kinds for damaged files.
        detail = " ".join(str(error).split())[:160]
        raise UserError(f"{str(source)!r} is damaged ({detail}); fetch the model again") from None
    for path, leaf in flat.items():
        if not bool(jnp.isfinite(leaf).all()):
            raise UserError(
                f"{str(source)!r}: {path} holds numbers that are not finite; fetch the model again"
            )
    params = unflatten({path: flat[path].reshape(shapes[path].shape) for path in shapes})
    with new_folder(target) as building:
        spec = tokenizer or _keep_tokenizer(source, building)
        try:
            from matta_jax.tokenizers import make_tokenizer  # As in _extract.py.

            known = make_tokenizer(resolved_tokenizer(spec, building))
        except UserError as error:
            if tokenizer is not None:
                raise
            detail = str(error).replace(str(building), str(target)).partition(";")[0]
            raise UserError(
                f"{str(source)!r}: its tokenizer cannot be used ({detail}); name one by --tokenizer"
            ) from None
        if known.vocab_size > architecture.vocab_size:
            whose = f"tokenizer={tokenizer!r}" if tokenizer else f"the tokenizer in {str(source)!r}"
            raise UserError(
                f"{whose} has {known.vocab_size} ids, but the model a vocabulary of "
                f"{architecture.vocab_size}; name "
                "the model's own by --tokenizer"
            )
        config = Config(
            model=ModelConfig(
                vocab_size=architecture.vocab_size,
                max_len=architecture.max_len,
                num_layers=len(architecture.d_ff),
                d_model=architecture.d_model,
                num_heads=architecture.d_model // architecture.head_dim,
                d_ff=max(architecture.d_ff),
            ),
            data=DataConfig(tokenizer=spec, seq_len=min(1024, architecture.max_len)),
        )
        about = {
            "parent": {"hf": str(source)},
            "spec": source.name,
            "config": config_lib.to_dict(config),
            "scores": [],
        }
        write_package(building, params, architecture, packaging, about, eos_id=known.eos_id)
    return open_model(target)


def _keep_tokenizer(source: pathlib.Path, building: pathlib.Path) -> str:
    """Copies a Hugging Face folder's tokenizer into the model's; returns its spec."""
    kept = building / TOKENIZER
    if (source / "tokenizer.json").is_file():
        kept.mkdir()
        shutil.copyfile(source / "tokenizer.json", kept / "tokenizer.json")
        return f"hf:./{TOKENIZER}/tokenizer.json"
    files = {"merges.txt": "vocab.bpe", "vocab.json": "encoder.json"}
    if all((source / name).is_file() for name in files):
        kept.mkdir()
        for name, ours in files.items():
            shutil.copyfile(source / name, kept / ours)
        return f"gpt2:./{TOKENIZER}"
    raise UserError(
        f"{str(source)!r} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt); name "
        "one, such as "
        "--tokenizer=gpt2:FOLDER or --tokenizer=byte"
    )
