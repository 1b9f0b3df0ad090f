"""A model to run: an extracted one from its folder, or a sub-model in place in its TA."""

import dataclasses
import json
import pathlib
from typing import Any

import jax

from matta_jax import config as config_lib
from matta_jax.checkpoints import load_folder, on_one_device
from matta_jax.config import Config
from matta_jax.elastic._source import load_source
from matta_jax.errors import UserError
from matta_jax.models import Architecture, abstract_params, apply, logits, sub_model_apply
from matta_jax.nesting import Counts, Nest, SubModel, Tree, count, format_spec, parse_spec


@dataclasses.dataclass(frozen=True)
class Model:
    """Weights and the function that runs them.

    Attributes:
      spec: which sub-model of its run it is.
      config: of its run.
      counts: parameters, bytes, FLOPs per token at the run's sequence length.
      params: weights; the TA's for a sub-model in place.
      origin: where it came from, for reports.
    """

    spec: str
    config: Config
    counts: Counts
    params: Tree
    origin: dict[str, Any]
    _architecture: Architecture | None = None
    _in_place: tuple[SubModel, Nest, Tree] | None = None

    def apply(self, params: Tree, tokens_BT: jax.Array) -> jax.Array:
        """Returns the normed hidden states [B·T, D], in float32. Pure in its arguments, fit for `jax.jit`."""
        if self._in_place is not None:
            sub_model, nest, axes = self._in_place
            return sub_model_apply(params, tokens_BT, sub_model, nest=nest, axes=axes)
        assert self._architecture is not None
        return apply(self._architecture, params, tokens_BT)

    def logits(self, params: Tree, tokens_BT: jax.Array) -> jax.Array:
        """Returns the logits [B·T, V], in float32."""
        return logits(self.apply(params, tokens_BT), params["embed"]["tokens"])


def load_model(folder: str | pathlib.Path) -> Model:
    """Reads and verifies an extracted model. Raises UserError when it is missing or damaged."""
    path = pathlib.Path(folder).resolve()
    file = path / "manifest.json"
    if not file.is_file():
        raise UserError(
            f"model={str(folder)!r} is not an extracted model (no manifest.json); make one with matta-extract"
        )
    try:
        manifest = json.loads(file.read_text())
        fields = manifest["architecture"]
        architecture = Architecture(**{**fields, "d_ff": tuple(fields["d_ff"])})
        config = config_lib.from_dict(manifest["config"])
        counts = Counts(**manifest["counts"])
        spec, parent = manifest["spec"], manifest["parent"]
    except (ValueError, TypeError, KeyError):
        raise UserError(f"model={str(folder)!r} is damaged ({file.name} cannot be read); extract it again") from None
    abstract = on_one_device(abstract_params(architecture))
    params = load_folder(path / "weights", {"params": abstract})["params"]
    return Model(spec, config, counts, params, {"model": str(path), "step": parent["step"]}, _architecture=architecture)


def load_in_place(checkpoint: str, spec: str) -> Model:
    """Reads a run's TA and takes one sub-model of it in place. Raises UserError for a bad checkpoint or spec."""
    source = load_source(checkpoint)
    sub_model = parse_spec(spec, source.nest)
    counts = count(
        source.params, source.axes, sub_model, head_dim=source.nest.head_dim, seq_len=source.config.data.seq_len
    )
    return Model(
        format_spec(sub_model, source.nest),
        source.config,
        counts,
        source.params,
        {"checkpoint": str(source.directory), "step": source.step},
        _in_place=(sub_model, source.nest, source.axes),
    )
