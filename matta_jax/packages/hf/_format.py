"""Hugging Face's folders: config.json and safetensors, read and written without torch."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from matta_jax import storage
from matta_jax.config import ModelConfig
from matta_jax.errors import UserError, did_you_mean, listed, shorten
from matta_jax.models import Architecture
from matta_jax.nesting import Names
from matta_jax.packages._packaging import MIXED, STOCK, TIMM, VLLM
from matta_jax.packages._safetensors import FolderTensors, ForeignTensors
from matta_jax.packages._weights import Weight
from matta_jax.packages.hf._bert import BertLayout
from matta_jax.packages.hf._deci import DeciLayout
from matta_jax.packages.hf._gemma import Gemma3Layout
from matta_jax.packages.hf._gpt2 import GPT2Layout
from matta_jax.packages.hf._layout import Layout
from matta_jax.packages.hf._llama import LlamaLayout
from matta_jax.packages.hf._mixed import MixedGPT2Layout, MixedLayout, UnpaddedLayout
from matta_jax.packages.hf._qwen import Qwen2Layout, Qwen3Layout
from matta_jax.packages.hf._tensors import Reader, tensor_readers, tensor_shapes, to_tensors
from matta_jax.packages.hf._timm import TimmVitLayout
from matta_jax.packages.hf._vit import VitLayout
from matta_jax.tokenizers import TextIds

_LAYOUTS: tuple[Layout, ...] = (
    BertLayout(),
    GPT2Layout(),
    LlamaLayout(),
    Qwen2Layout(),
    Qwen3Layout(),
    Gemma3Layout(),
    VitLayout(),
)
# With layers of their own sizes, which stock kinds pad.
_MIXED: tuple[UnpaddedLayout, ...] = (
    MixedGPT2Layout(),
    MixedLayout(LlamaLayout(), "Llama"),
    MixedLayout(Qwen2Layout(), "Qwen2"),
    MixedLayout(Qwen3Layout(), "Qwen3"),
)
_DECI = DeciLayout()
_TIMM = TimmVitLayout()
DECI_TITLE = _DECI.title
"""The kind of models that vLLM serves with layers of their own widths."""
_MEND = "name the folder of a model that can be imported, or fetch it again"


def layout_of(architecture: Architecture, style: str = STOCK) -> Layout:
    """The kind of Hugging Face models that a model of ours is written as.

    Args:
      architecture: of the model.
      style: `stock`, padded where its layers differ; `mixed`, with code for layers that differ,
        where there is some for its kind; `vllm`; or `timm`.

    Raises:
      UserError: there is none.
    """
    if style == VLLM:
        _DECI.check(architecture)
        return _DECI
    if style == TIMM:
        _TIMM.check(architecture)
        return _TIMM
    if style == MIXED:
        for mixed in _MIXED:
            if mixed.fits(architecture):
                return mixed
    for layout in _LAYOUTS:
        if layout.family_name == architecture.family_name and layout.fits(architecture):
            return layout
    if architecture.family_name == "scorer":
        raise UserError(
            "format='hf' is for language models, embedders and image classifiers; write a scorer "
            "as format=safetensors or orbax"
        )
    raise UserError(
        f"format='hf' has no kind of model for this one of the family "
        f"{architecture.family_name!r}; use format=safetensors"
    )


def hf_config(
    architecture: Architecture, dtype: str, text_ids: TextIds | None, style: str = STOCK
) -> dict[str, Any]:
    """The config.json of a model, in a style of `layout_of`. Raises UserError where models of its
    kind have no room for it.
    """
    return layout_of(architecture, style).describe(architecture, dtype, text_ids)


def hf_companions(
    architecture: Architecture, style: str = STOCK
) -> tuple[dict[str, str], Mapping[str, Mapping[str, np.ndarray]]]:
    """What other libraries read beside config.json and the weights: texts by path, and tensors by
    folder and name.
    """
    layout = layout_of(architecture, style)
    documents = layout.more_documents(architecture).items()
    texts = {name: storage.json_text(document, indent=2) + "\n" for name, document in documents}
    return {**texts, **layout.more_texts()}, layout.more_tensors(architecture)


def hf_shapes(architecture: Architecture, style: str = STOCK) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a model, by name, in the order of `to_hf`."""
    return tensor_shapes(layout_of(architecture, style), architecture)


def to_hf(
    weights: Mapping[str, Weight],
    names: Mapping[str, Names],
    architecture: Architecture,
    style: str = STOCK,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors of a model with their names; each weight of a layer is read when its turn
    comes.

    Args:
      weights: ours, by path.
      names: their axis names, by path.
      architecture: of the model.
      style: as of `layout_of`.
    """
    return to_tensors(layout_of(architecture, style), weights, names, architecture)


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A model from elsewhere: what it says of itself, and its tensors.

    Attributes:
      layout: its kind.
      config: what its config.json says, or would say.
      source: where it is, as errors name it.
      open_tensors: opens its tensors.
    """

    layout: Layout
    config: Mapping[str, Any]
    source: storage.Path
    open_tensors: Callable[[], ForeignTensors]
    mend: str = _MEND

    @functools.cached_property
    def architecture(self) -> Architecture:
        """Of the model. Raises UserError when its config is damaged, or says what we do not
        compute.
        """
        return self._said(self.layout.architecture)

    @functools.cached_property
    def section(self) -> ModelConfig:
        """Our section of the config for it; raises as `architecture`."""
        return self._said(self.layout.section)

    def _said(self, read: Callable[[Mapping[str, Any]], Any]) -> Any:
        with _explained(self.source, f"{self.layout.title}'s config", self.mend):
            return read(self.config)

    def readers(self, names: Mapping[str, Names]) -> dict[str, Reader]:
        """For each of our weights, by path, a function that reads the part of an index.

        Args:
          names: axis names of our weights, by path.

        Raises:
          UserError: files or tensors are missing, or of other shapes than the config says.
        """
        return tensor_readers(self.layout, self.open_tensors(), self.architecture, names)


def open_hf(folder: storage.Path, *, mend: str = _MEND) -> Foreign:
    """Opens a Hugging Face folder. Raises UserError when its config.json is missing, damaged, or of
    a kind that is not known.
    """
    file = folder / "config.json"
    with _explained(file, "a model's config", mend):
        try:
            config = storage.read_json(file)
        except FileNotFoundError:
            raise UserError(
                f"{str(folder)!r} is not a Hugging Face model (no config.json); {mend}"
            ) from None
        # A config of timm has no type, but the name of an architecture.
        is_timm = "architecture" in config and "model_type" not in config
        layout = _TIMM if is_timm else layout_of_type(config["model_type"])
        config = layout.with_more(folder, config)
    tensors = functools.partial(FolderTensors, folder, layout.prefix, mend)
    return Foreign(layout, config, file, tensors, mend)


@contextlib.contextmanager
def _explained(file: storage.Path, title: str, mend: str) -> Iterator[None]:
    """Damage in a config as a line that names it."""
    try:
        yield
    except UserError as error:
        named = str(file.parent) in str(error)
        raise (error if named else UserError(f"{str(file)!r}: {error}")) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        detail = " ".join(str(error).split())
        if isinstance(error, KeyError):
            detail = f"{error} is missing"
        raise UserError(f"{str(file)!r} cannot be read as {title} ({detail}); {mend}") from None


def layout_of_type(model_type: Any) -> Layout:
    """The kind of models of a `model_type`. Raises UserError for one that is not known."""
    for layout in (*_LAYOUTS, *_MIXED, _DECI):
        if model_type in layout.model_types:
            return layout
    types = [name for layout in _LAYOUTS for name in layout.model_types]
    raise UserError(
        f"model_type={shorten(model_type)} is not supported, only {listed(types)}; import one of "
        f"these{did_you_mean(model_type, types) if isinstance(model_type, str) else ''}"
    )
