"""Milliseconds of an engine that serves models, on files as extraction writes them."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from matta_jax import config as config_lib
from matta_jax import storage
from matta_jax.checkpoints import Source
from matta_jax.models import Architecture, abstract_params
from matta_jax.nesting import SubModel, Tree, flatten, format_spec, unflatten
from matta_jax.packages import (
    Packaging,
    Timing,
    check_timed,
    in_memory,
    pads_layers,
    text_ids_of,
    time_folders,
    write_package,
)
from matta_jax.selection._space import Space
from matta_jax.selection._workload import Workload

_SEED = 0
# Of random weights: activations stay numbers, and no product of them is too small for one.
_SCALE = 0.02


class EngineClock:
    """Times models in an engine, those of a call in turn; their files are removed again.

    Attributes:
      workload: what is timed.
      packaging: how models are written.
      takes_turns: whether models of a call are timed in turn.
    """

    takes_turns = True

    def __init__(
        self,
        source: Source,
        workload: Workload,
        packaging: Packaging,
        log: Callable[[str], None],
    ):
        self._source = source
        self.workload = workload
        self.packaging = packaging
        self._log = log
        self._version = ""

    @property
    def pads_layers(self) -> bool:
        """Whether layers of several sizes are padded to the widest."""
        return pads_layers(self.packaging, self._source.plan.architecture)

    @property
    def about(self) -> Mapping[str, str]:
        """Its name, its version once it has run, and the format and numbers of the files."""
        return {
            "name": self.workload.engine,
            "version": self._version,
            "format": self.packaging.format,
            "numbers": self.packaging.numbers,
        }

    def check(self, space: Space) -> None:
        """Raises UserError where the engine cannot run a model of the space."""
        models = [self._source.nest.ta, *space.forms()]
        for sub_model in models:
            check_timed(
                self.workload.engine,
                self.packaging,
                self._source.architecture_of(sub_model),
                self._source.config.data.tokenizer,
            )

    def times(self, probes: Sequence[Architecture], sub_models: Sequence[SubModel]) -> list[Timing]:
        """The times of models of random weights, then those of sub-models of the run, as they are
        extracted.
        """
        numbers, engine = self.packaging.numbers, self.workload.engine
        if sub_models:
            self._log(f"timing {len(sub_models)} models of {numbers} in {engine}")
        else:
            self._log(f"timing {len(probes)} probes of {numbers} in {engine}, to predict others by")

        nest = self._source.nest
        described = [(architecture, "a probe") for architecture in probes]
        for sub_model in sub_models:
            architecture = self._source.architecture_of(sub_model)
            described.append((architecture, format_spec(sub_model, nest)))
        # One at a time: each is written before the next is read.
        weights = itertools.chain(map(_random_weights, probes), self._source.read_many(sub_models))
        return self._times(described, weights)

    def _times(
        self,
        described: Sequence[tuple[Architecture, str]],
        weights: Iterator[Tree],
    ) -> list[Timing]:
        with storage.scratch_folder() as scratch:
            folders = []
            for i, ((architecture, spec), params) in enumerate(
                zip(described, weights, strict=True)
            ):
                # A letter first: transformers makes a module of the name of a folder with code.
                folder = storage.path(str(scratch)) / f"model_{i}"
                self._write(folder, architecture, params, spec)
                folders.append(folder)
            self._version, timings = time_folders(
                self.workload.engine,
                folders,
                mode=self.workload.mode,
                shape=(self.workload.batch_size, self.workload.length),
                threads=self.workload.threads or 1,
            )
        return timings

    def _write(
        self, folder: storage.Path, architecture: Architecture, params: Tree, spec: str
    ) -> None:
        config = self._source.config
        about: dict[str, Any] = {
            "parent": {"run": str(self._source.directory)},
            "spec": spec,
            "config": config_lib.to_dict(config),
            "scores": [],
        }
        with storage.new_folder(folder, last="manifest.json") as building:
            write_package(
                building,
                in_memory(params),
                architecture,
                self.packaging,
                about,
                text_ids=text_ids_of(config.data.tokenizer),
            )


def _random_weights(architecture: Architecture) -> Tree:
    rng = np.random.default_rng(_SEED)
    weights = {}
    for path, leaf in flatten(abstract_params(architecture)).items():
        weights[path] = (_SCALE * rng.standard_normal(leaf.shape)).astype(np.float32)
    return unflatten(weights)
