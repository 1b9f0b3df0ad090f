"""Models from elsewhere become ours: Hugging Face folders, GGUF files, those of llama2.c."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from matta_jax import config as config_lib
from matta_jax import storage
from matta_jax.config import Config, DataConfig, ModelConfig
from matta_jax.errors import UserError
from matta_jax.models import Architecture, abstract_params, logical_axes
from matta_jax.nesting import flatten
from matta_jax.packages import (
    Foreign,
    Package,
    Packaging,
    Reader,
    Weight,
    check_format,
    check_target,
    gguf_tokenizer,
    new_folder,
    open_gguf,
    open_hf,
    open_llama2c,
    open_model,
    write_package,
)
from matta_jax.tokenizers import (
    TOKENIZER,
    TextIds,
    companions,
    make_tokenizer,
    read_spm,
    resolved_tokenizer,
)

# OpenAI's names of the files of a GPT-2 tokenizer, which ours reads, by those of Hugging Face.
_GPT2_NAMES = {"merges.txt": "vocab.bpe", "vocab.json": "encoder.json"}
_RULES = "tokenizer.json"
_SPM = ".model"


def import_hf(
    folder: str | storage.Path,
    output: str | storage.Path,
    *,
    tokenizer: str | None = None,
    packaging: Packaging | None = None,
) -> Package:
    """Makes a model of ours from a Hugging Face folder: config.json and safetensors; no torch, no
    network. GPT-2, Llama, Qwen 2.5, Qwen 3, Gemma 3 text, BERT and ViT are known, the last by
    timm's names too.

    Args:
      folder: the Hugging Face model, or a ViT or DeiT of timm.
      output: the folder of the model.
      tokenizer: as `data.tokenizer`; None for that in the folder (tokenizer.json, or vocab.json and
        merges.txt).
      packaging: format and type.

    Raises:
      UserError: files or tensors are missing or damaged, or belong to a model that is not known.

    Examples:
      >>> matta_jax.import_hf("exported/gpt2", "models/imported", tokenizer="byte").path.name
      'imported'
    """
    source = storage.resolve(folder)
    tokens = _Tokens(source, tokenizer, _keep_hf_tokenizer)
    return _import({"hf": str(source)}, open_hf(source), output, tokens, packaging)


def import_gguf(
    file: str | storage.Path,
    output: str | storage.Path,
    *,
    tokenizer: str | None = None,
    packaging: Packaging | None = None,
) -> Package:
    """Makes a model of ours from a GGUF file of a GPT-2, Llama, Qwen 2.5 or Qwen 3; quantised
    weights become float32. Arguments and errors as of `import_hf`.

    Examples:
      >>> matta_jax.import_gguf("exported/gguf/model.gguf", "models/from_gguf").path.name
      'from_gguf'
    """
    source = storage.resolve(file)
    tokens = _Tokens(source, tokenizer, _keep_gguf_tokenizer)
    return _import({"gguf": str(source)}, open_gguf(source), output, tokens, packaging)


def import_llama2c(
    file: str | storage.Path,
    output: str | storage.Path,
    *,
    tokenizer: str | None = None,
    packaging: Packaging | None = None,
) -> Package:
    """Makes a model of ours from a file of llama2.c.

    Args:
      file: the model.
      output: the folder of the model.
      tokenizer: as `data.tokenizer`, or a SentencePiece `.model` file.
      packaging: format and type.

    Raises:
      UserError: as `import_hf`, or no tokenizer is named.

    Examples:
      >>> package = matta_jax.import_llama2c("stories.bin", "models/stories", tokenizer="byte")
      >>> package.architecture.num_layers
      2
    """
    source = storage.resolve(file)
    tokens = _Tokens(source, tokenizer, _without_tokenizer)
    return _import({"llama2c": str(source)}, open_llama2c(source), output, tokens, packaging)


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """Where a model's tokenizer comes from.

    Attributes:
      source: the model.
      name: what the user names; None: the model's own.
      keep: writes the model's own into the folder that is being built; returns its spec.
    """

    source: storage.Path
    name: str | None
    keep: Callable[[storage.Path, storage.Path], str]

    def place(self, building: storage.Path) -> str:
        """Puts the tokenizer's files there, where they are to be; returns its spec."""
        if self.name is None:
            return self.keep(self.source, building)
        if self.name.endswith(_SPM):
            return _write_rules(read_spm(storage.path(self.name)), building)
        return self.name

    def checked_ids(self, spec: str, building: storage.Path, architecture: Architecture) -> TextIds:
        """What stands around its texts.

        Raises:
          UserError: the tokenizer cannot be used, or knows more ids than the model.
        """
        try:
            tokenizer = make_tokenizer(resolved_tokenizer(spec, building))
        except UserError as error:
            if self.name is not None:
                raise
            detail = _of_source(error, self.source, building)
            raise UserError(
                f"{str(self.source)!r}: its tokenizer cannot be used ({detail}); name one by "
                "--tokenizer"
            ) from None
        if tokenizer.vocab_size > architecture.vocab_size:
            whose = f"tokenizer={self.name!r}" if self.name else "the tokenizer in"
            where = "" if self.name else f" {str(self.source)!r}"
            raise UserError(
                f"{whose}{where} has {tokenizer.vocab_size} ids, but the model a vocabulary of "
                f"{architecture.vocab_size}; name the model's own by --tokenizer"
            )
        return tokenizer.text_ids


def _import(
    parent: Mapping[str, str],
    foreign: Foreign,
    output: str | storage.Path,
    tokens: _Tokens,
    packaging: Packaging | None,
) -> Package:
    packaging = packaging or Packaging()
    target, architecture = storage.resolve(output), foreign.architecture
    reads = foreign.readers(flatten(logical_axes(architecture)))
    check_target(target, overwrite=packaging.overwrite)
    if packaging.with_optimizer:
        raise UserError(
            "with_optimizer: a model from elsewhere has no optimiser state; import without it"
        )

    check_format(packaging, architecture)
    weights = _weights(tokens.source, architecture, reads)
    with new_folder(target) as building:
        # What reads images has no texts, and its config's tokenizer no effect.
        spec, text_ids = "byte", None
        if not foreign.section.reads_images:
            spec = tokens.place(building)
            text_ids = tokens.checked_ids(spec, building, architecture)
        about = {
            "parent": dict(parent),
            "spec": tokens.source.name,
            "config": config_lib.to_dict(_config(foreign.section, spec)),
            "scores": [],
        }
        write_package(building, weights, architecture, packaging, about, text_ids=text_ids)
    return open_model(target)


def _weights(
    source: storage.Path, architecture: Architecture, reads: Mapping[str, Reader]
) -> dict[str, Weight]:
    """The weights of a model in float32, by path, each read when it is written."""
    weights = {}
    for path, leaf in flatten(abstract_params(architecture)).items():
        read = functools.partial(_read, source, path, reads[path])
        weights[path] = Weight(leaf.shape, np.dtype(np.float32), read)
    return weights


def _read(source: storage.Path, path: str, read: Reader, index: tuple[Any, ...]) -> np.ndarray:
    """Reads a part of a weight. Raises UserError for damaged files and weights."""
    try:
        # What overflows becomes infinite, and is named below.
        with np.errstate(over="ignore"):
            part = read(index).astype(np.float32, copy=False)
    except UserError:
        raise
    except Exception as error:  # safetensors raises many kinds for damaged files.
        detail = " ".join(str(error).split())[:160]
        raise UserError(f"{str(source)!r} is damaged ({detail}); fetch the model again") from None

    # A file may be whole, and yet hold weights of a training that diverged.
    count = part.size - int(np.isfinite(part).sum())
    if count:
        raise UserError(
            f"{str(source)!r}: {path} holds numbers that are not finite in float32 ({count:,} of "
            f"{part.size:,}); fetch the model again"
        )
    return part


def _config(model: ModelConfig, tokenizer: str) -> Config:
    """The config that an imported model has in place of its run's."""
    data = DataConfig(tokenizer=tokenizer, seq_len=min(1024, model.max_len))
    return Config(model=model, data=data)


def _of_source(error: UserError, source: storage.Path, building: storage.Path) -> str:
    """What is wrong with a copy of a tokenizer, said of the user's own files: the folder that is
    being built is gone when the user reads this.
    """
    detail = str(error).replace(str(building / TOKENIZER), str(source)).partition(";")[0]
    for hf_name, name in _GPT2_NAMES.items():
        detail = detail.replace(name, hf_name)
    return detail


def _write_rules(rules: Mapping[str, Any], building: storage.Path) -> str:
    """Writes a tokenizer.json into the model's folder; returns its spec."""
    place = building / TOKENIZER
    storage.make_folder(place)
    storage.replace_text(place / _RULES, storage.json_text(rules) + "\n")
    return f"hf:./{TOKENIZER}/{_RULES}"


def _keep_hf_tokenizer(source: storage.Path, building: storage.Path) -> str:
    """Copies a Hugging Face folder's tokenizer into the model's; returns its spec."""
    place = building / TOKENIZER
    if (source / _RULES).is_file():
        storage.make_folder(place)
        for file in [source / _RULES, *companions(f"hf:{source / _RULES}")]:
            storage.copy_file(file, place / file.name)
        return f"hf:./{TOKENIZER}/{_RULES}"

    if all((source / hf_name).is_file() for hf_name in _GPT2_NAMES):
        storage.make_folder(place)
        for hf_name, name in _GPT2_NAMES.items():
            storage.copy_file(source / hf_name, place / name)
        return f"gpt2:./{TOKENIZER}"
    raise UserError(
        f"{str(source)!r} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt); name "
        "one, such as --tokenizer=gpt2:FOLDER or --tokenizer=byte"
    )


def _keep_gguf_tokenizer(source: storage.Path, building: storage.Path) -> str:
    """Writes a GGUF file's tokenizer, and what it says of conversations, beside the model."""
    rules, texts = gguf_tokenizer(source)
    spec = _write_rules(rules, building)
    for name, text in texts.items():
        storage.replace_text(building / TOKENIZER / name, text)
    return spec


def _without_tokenizer(source: storage.Path, building: storage.Path) -> str:
    del building
    raise UserError(
        f"{str(source)!r} holds no tokenizer; name one, such as --tokenizer=hf:FILE.json or a "
        "SentencePiece FILE.model"
    )
