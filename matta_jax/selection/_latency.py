"""Milliseconds of an engine: a model of single layers, and the time of a whole model to check it
by.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import scipy.optimize

from matta_jax.checkpoints import Source
from matta_jax.models import Architecture
from matta_jax.nesting import Sizes, SubModel
from matta_jax.packages import Timing
from matta_jax.selection._space import Group
from matta_jax.selection._workload import Workload

# Layers of the models that times are fitted to, at least: half of the TA's, and as many. On a busy
# machine a model of a few layers runs unhindered, and tells nothing of those which do not.
_FEW_LAYERS, _MORE_LAYERS = 2, 4


class Clock(Protocol):
    """What times models.

    Attributes:
      workload: what is timed.
      about: of the engine, for reports: `name`, `version`, `numbers`.
      pads_layers: whether layers of several sizes are padded to the widest.
      takes_turns: whether models of a call are timed in turn, and not one after the other.
    """

    @property
    def workload(self) -> Workload: ...

    @property
    def about(self) -> Mapping[str, str]: ...

    @property
    def pads_layers(self) -> bool: ...

    @property
    def takes_turns(self) -> bool: ...

    def times(self, probes: Sequence[Architecture], sub_models: Sequence[SubModel]) -> list[Timing]:
        """The times of models without weights, then those of sub-models of the run."""


class LatencyModel:
    """Predicts the time of a sub-model as a sum over its layers, and a time of what is not layers:
    those which fit best the times of models of half and of all layers of each option.

    Attributes:
      clock: what times models.
    """

    def __init__(self, source: Source, clock: Clock):
        self._source = source
        self.clock = clock
        self._parts: dict[Sizes, tuple[float, list[float]]] = {}

    @property
    def workload(self) -> Workload:
        """What is timed."""
        return self.clock.workload

    def linear(self, group: Group) -> tuple[float, list[float]]:
        """Milliseconds of a group's model without layers, and of a layer of each option; measured
        once.
        """
        # Groups that differ in their layers alone have the same parts.
        if group.sizes not in self._parts:
            self._parts[group.sizes] = self._fitted_parts(group)
        return self._parts[group.sizes]

    def _fitted_parts(self, group: Group) -> tuple[float, list[float]]:
        """What `linear` returns, fitted to times."""
        probes, rows = self._probes(group)
        return _fitted(rows, self.clock.times(probes, ()))

    def _probes(self, group: Group) -> tuple[list[Architecture], list[list[float]]]:
        """The models that are timed, and how often each has all else and a layer of each option."""
        options = self._source.nest.layer_options
        num_layers = self._source.nest.num_layers
        depths = (max(_FEW_LAYERS, num_layers // 2), max(_MORE_LAYERS, num_layers))
        architectures, rows = [], []
        for i, option in enumerate(options):
            for depth in depths:
                # Any layers will do: a time depends on their number and sizes.
                sub_model = group.with_layers(tuple(range(depth))).uniform(option)
                architectures.append(self._source.architecture_of(sub_model))
                rows.append([1.0, *(depth if j == i else 0.0 for j in range(len(options)))])
        return architectures, rows

    def predicted(self, group: Group, sub_model: SubModel) -> float:
        """Returns the predicted milliseconds of a model of a group."""
        base, layers = self.linear(group)
        if self.clock.pads_layers:
            sub_model = _padded(sub_model)
        milliseconds = []
        for layer in sub_model.layers:
            option = self._source.nest.option_of(sub_model, layer)
            if option is not None:
                milliseconds.append(layers[option])
        return base + sum(milliseconds)

    def measured(self, models: Sequence[tuple[Group, SubModel]]) -> list[Timing]:
        """Times whole models, each of a group. Where these take turns, so do the probes, and what
        is predicted from now on is fitted to them: a machine that does other work slows all down.
        """
        sub_models = [sub_model for _, sub_model in models]
        if not self.clock.takes_turns:
            return self.clock.times((), sub_models)
        probes, rows_of = [], {}
        for group, _ in models:
            if group.sizes not in rows_of:
                architectures, rows_of[group.sizes] = self._probes(group)
                probes += architectures

        timings = self.clock.times(probes, sub_models)
        start = 0
        for sizes, rows in rows_of.items():
            self._parts[sizes] = _fitted(rows, timings[start : start + len(rows)])
            start += len(rows)
        return timings[start:]


def _fitted(
    rows: Sequence[Sequence[float]], timings: Sequence[Timing]
) -> tuple[float, list[float]]:
    """The parts whose sums come nearest to times: of what is not layers, and of a layer of each
    option.
    """
    # Noise would make a part of a second negative: none is. Deep models weigh more, as they do in
    # a search.
    parts, _ = scipy.optimize.nnls(np.array(rows), np.array([timing.ms for timing in timings]))
    return float(parts[0]), parts[1:].tolist()


def _padded(sub_model: SubModel) -> SubModel:
    """The model of one size in all layers, as which a padded one runs."""
    widest = {axis: sub_model.largest(axis) for axis in sub_model.per_layer}
    return SubModel(sub_model.layers, {**sub_model.sizes, **widest})
