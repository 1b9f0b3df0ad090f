"""Milliseconds on this device: a model of single layers, and the time of a whole model to check it
by.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from matta_jax.checkpoints import Source
from matta_jax.errors import UserError
from matta_jax.models import (
    Architecture,
    Inputs,
    Schema,
    abstract_params,
    apply,
    decoder_weights,
    extend,
    init_cache,
    logits,
    table_of,
)
from matta_jax.nesting import Sizes, SubModel
from matta_jax.selection._space import Group, check_count

MODES = ("prefill", "decode")

_DTYPES = ("float32", "bfloat16")
# That are timed at once; their activations alone fill any device's memory.
_MOST_TOKENS = 2**24

# A time is the median of so many runs, and of as many as fit in so many seconds.
_MIN_SECONDS = 0.3
_MIN_REPEATS = 5
_MAX_REPEATS = 200


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is timed.

    Attributes:
      mode: `prefill`, the forward pass of whole sequences with the logits of their last tokens; or
        `decode`, one token more for each sequence, with its keys and values cached.
      batch_size: sequences.
      length: tokens of a sequence; in decode, those that the new one attends to.
      dtype: compute type.
    """

    mode: str = "prefill"
    batch_size: int = 1
    length: int = 128
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"latency_mode={self.mode!r} must be one of {', '.join(MODES)}")
        if self.dtype not in _DTYPES:
            raise UserError(f"latency dtype={self.dtype!r} must be one of {', '.join(_DTYPES)}")
        for name in ("batch_size", "length"):
            check_count(f"latency_{name}", getattr(self, name), 1, _MOST_TOKENS)
        if self.batch_size * self.length > _MOST_TOKENS:
            raise UserError(
                f"latency_batch_size={self.batch_size} sequences of latency_length={self.length} "
                f"are too many tokens; keep their product within {_MOST_TOKENS:,}"
            )

    def check_length(self, max_len: int) -> None:
        """Raises UserError when it is longer than a model's positions."""
        if self.length > max_len:
            raise UserError(f"latency_length={self.length} must be at most model.max_len={max_len}")


def measure_ms(
    architecture: Architecture, workload: Workload, schema: Schema | None = None
) -> float:
    """The median time, in milliseconds, of a plain model of this architecture; its weights' values
    do not matter.

    Args:
      architecture: of the model.
      workload: what is timed.
      schema: what it reads; None: tokens.

    Raises:
      UserError: the workload is longer than the model's positions.
    """
    if "vocab" in architecture.fixed:
        workload.check_length(architecture.max_len)

    def fill(leaf: Any) -> jax.Array:
        return jnp.full(leaf.shape, 0.01, workload.dtype)

    # No checkpoint is read: a time depends on shapes and types alone.
    params = jax.tree.map(fill, abstract_params(architecture))

    prepare = _prefill if workload.mode == "prefill" else _decode
    call = prepare(architecture, workload, params, schema)
    return _time(call)


def _head(architecture: Architecture, params: Any) -> jax.Array:
    table = table_of(architecture, params)
    assert table is not None
    return table


def _prefill(
    architecture: Architecture, workload: Workload, params: Any, schema: Schema | None
) -> Callable[[], Any]:
    """Returns the call that is timed."""
    shape = (workload.batch_size, workload.length)
    inputs: dict[str, Any] = {"tokens": jnp.zeros(shape, jnp.int32)}
    if schema is not None:
        inputs = dict(schema.example(*shape, seed=0))

    # The weights are an argument: those of a closure would be constants of the program.
    @jax.jit
    def prefill(params: Any, inputs: Inputs) -> jax.Array:
        output = apply(architecture, params, inputs, dtype=workload.dtype)
        if table_of(architecture, params) is None:
            return output
        # Serving needs the next token alone, so the logits of the others are not made.
        last_BD = output.reshape(*shape, -1)[:, -1]
        return logits(last_BD, _head(architecture, params))

    return lambda: prefill(params, inputs)


def _decode(
    architecture: Architecture, workload: Workload, params: Any, schema: Schema | None
) -> Callable[[], Any]:
    """As `_prefill`."""
    del schema
    tokens_B1 = jnp.zeros((workload.batch_size, 1), jnp.int32)
    # The new token is the last of the length: it attends to itself too.
    start = jnp.int32(workload.length - 1)
    cache = init_cache(
        architecture,
        batch_size=workload.batch_size,
        length=workload.length,
        dtype=workload.dtype,
    )

    # The cache is donated, so that the new token is written into it without a copy.
    @functools.partial(jax.jit, donate_argnums=2)
    def step(params: Any, tokens_B1: jax.Array, cache: Any) -> Any:
        hidden_BD, longer = extend(architecture, params, tokens_B1, cache, start)
        z_BV = logits(hidden_BD, _head(architecture, params))
        return z_BV, longer

    weights = decoder_weights(architecture, params)

    def decode_token() -> jax.Array:
        nonlocal cache
        # A donated cache may not be used again: the next call takes what this one returns.
        z_BV, cache = step(weights, tokens_B1, cache)
        return z_BV

    return decode_token


def _time(call: Callable[[], Any]) -> float:
    # The first call compiles, and is not timed.
    jax.block_until_ready(call())

    times: list[float] = []
    while len(times) < _MIN_REPEATS or (sum(times) < _MIN_SECONDS and len(times) < _MAX_REPEATS):
        start = time.perf_counter()
        # A call returns before the device has done its work.
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)

    # Not the mean: a pause of the machine makes a few runs far too long.
    return 1e3 * statistics.median(times)


class LatencyModel:
    """Predicts the time of a sub-model as a sum over its layers.

    The time of one layer is half the difference between models of four and of two such layers; what
    remains of these is the time of what is not layers.
    """

    def __init__(self, source: Source, workload: Workload):
        self._source = source
        self.workload = workload
        self._parts: dict[Sizes, tuple[float, list[float]]] = {}

    def linear(self, group: Group) -> tuple[float, list[float]]:
        """Milliseconds of a group's model without layers, and of a layer of each option; measured
        once.
        """
        # Groups that differ in their layers alone have the same parts.
        if group.sizes not in self._parts:
            self._parts[group.sizes] = self._measured_parts(group)
        return self._parts[group.sizes]

    def _measured_parts(self, group: Group) -> tuple[float, list[float]]:
        """What `linear` returns, measured."""
        layers = []
        remainders = []
        for option in self._source.nest.layer_options:
            two = self._of_depth(group, option, 2)
            four = self._of_depth(group, option, 4)

            # The difference leaves out embedding and head. Noise may make it negative.
            layer = max((four - two) / 2, 0.0)
            layers.append(layer)
            remainders.append(max(two - 2 * layer, 0.0))

        # What is not layers is alike for all options: each measures it once more.
        return statistics.median(remainders), layers

    def predicted(self, group: Group, sub_model: SubModel) -> float:
        """Returns the predicted milliseconds of a model of a group."""
        base, layers = self.linear(group)
        milliseconds = []
        for layer in sub_model.layers:
            option = self._source.nest.option_of(sub_model, layer)
            if option is not None:
                milliseconds.append(layers[option])
        return base + sum(milliseconds)

    def measured(self, sub_model: SubModel) -> float:
        """Times the whole model."""
        source = self._source
        architecture = source.architecture_of(sub_model)
        return measure_ms(architecture, self.workload, source.plan.schema)

    def _of_depth(self, group: Group, option: Sizes, depth: int) -> float:
        # Any layers will do: a time depends on their number and sizes.
        layers = tuple(range(depth))
        return self.measured(group.with_layers(layers).uniform(option))
