"""A foreign kind of model: its config both ways, and one table of names and axes."""

import abc
import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from matta_jax import storage
from matta_jax.config import ModelConfig
from matta_jax.models import MOST, MOST_LAYERS, Architecture
from matta_jax.nesting import Names
from matta_jax.packages._safetensors import ForeignTensors
from matta_jax.tokenizers import TextIds

Dims = tuple[Names, ...]
"""The logical axes of each dimension of a foreign tensor."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a weight of ours stands in Hugging Face's tensors.

    Attributes:
      tensors: their names; of a layer's with `{}` for its index.
      dims: the axes of their dimensions.
      stack: the axis of ours whose entries are tensors by themselves; None: there is one tensor.
    """

    tensors: tuple[str, ...]
    dims: Dims
    stack: str | None = None

    def in_layer(self, layer: int) -> "Place":
        """The same of a layer."""
        names = tuple(name.format(layer) for name in self.tensors)
        return dataclasses.replace(self, tensors=names)


class Layout(abc.ABC):
    """A kind of Hugging Face models. Stateless.

    Attributes:
      title: as errors name it.
      family_name: of our family.
      model_types: of config.json.
      prefix: of its tensors' names, which a folder may leave out.
      ignored: names of tensors that are no weights of ours.
      usage: how other libraries read a folder, in Python.
      form: the format that errors name.
      serving: the command with which vLLM serves a folder; empty: it does not.
      is_unpadded: whether each layer has its own sizes; a folder has code for them then.
    """

    title: str
    family_name: str
    model_types: tuple[str, ...]
    prefix: str
    ignored: re.Pattern[str]
    form: ClassVar[str] = "hf"
    serving: ClassVar[str] = ""
    is_unpadded: ClassVar[bool] = False
    usage: ClassVar[str] = """from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")"""

    def fits(self, architecture: Architecture) -> bool:
        """Whether a model of the family is of this kind."""
        del architecture
        return True

    @abc.abstractmethod
    def describe(self, architecture: Architecture, dtype: str, text_ids: TextIds | None) -> dict:
        """The config.json of a model. Raises UserError when stock models have no room for it."""

    @abc.abstractmethod
    def architecture(self, config: Mapping[str, Any]) -> Architecture:
        """The architecture that a config.json describes.

        Raises:
          UserError: it says something that we do not compute.
          KeyError, TypeError, ValueError: it is damaged.
        """

    @abc.abstractmethod
    def section(self, config: Mapping[str, Any]) -> ModelConfig:
        """Our section of the config, at the largest sizes of any layer; raises as `architecture`,
        which was called before.
        """

    @abc.abstractmethod
    def outer(self, architecture: Architecture) -> Mapping[str, Place]:
        """The weights beside the layers, by path."""

    @abc.abstractmethod
    def layer(self, architecture: Architecture) -> Mapping[str, Place]:
        """The weights of a layer, by their path within it."""

    def room(self, architecture: Architecture) -> dict[str, int]:
        """The size of each axis in a stock model that has room for all layers."""
        sub_model = architecture.sub_model
        largest = {axis: sub_model.largest(axis) for axis in sub_model.axes}
        return dict(architecture.fixed) | largest

    def layer_room(self, architecture: Architecture, layer: int) -> dict[str, int]:
        """The size of each axis in a layer: in a stock model that of all others."""
        del layer
        return self.room(architecture)

    def with_more(self, folder: storage.Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """A config.json with what other files of its folder say of the model. Raises UserError
        where these say what we do not compute.
        """
        del folder
        return config

    def more_documents(self, architecture: Architecture) -> Mapping[str, Any]:
        """JSON documents beside config.json that libraries of this kind read, by their paths."""
        del architecture
        return {}

    def more_texts(self) -> Mapping[str, str]:
        """Files of text beside config.json, by their names."""
        return {}

    def more_tensors(self, architecture: Architecture) -> Mapping[str, Mapping[str, np.ndarray]]:
        """Tensors of such libraries, by folder and name."""
        del architecture
        return {}

    def check_head(self, tensors: ForeignTensors, architecture: Architecture) -> None:
        """Raises UserError where the head is not what config.json says."""
        del tensors, architecture


def natural(name: str, value: Any, *, is_depth: bool = False) -> int:
    """A size from a config.json; raises ValueError for anything else."""
    if type(value) is not int or value < 1:
        raise ValueError(f"{name}={value!r:.40} must be a whole number of at least 1")
    # Before lists and shapes of that size are made.
    most = MOST_LAYERS if is_depth else MOST
    if value > most:
        raise ValueError(f"{name} must be at most {most:,}")
    return value
