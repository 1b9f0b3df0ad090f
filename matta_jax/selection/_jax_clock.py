"""Milliseconds of our programs on this device."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from matta_jax.checkpoints import Source
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
from matta_jax.nesting import SubModel
from matta_jax.packages import Timing
from matta_jax.selection._workload import Workload

# A time is the median of so many runs, and of as many as fit in so many seconds.
_MIN_SECONDS = 0.3
_MIN_REPEATS = 5
_MAX_REPEATS = 200


class JaxClock:
    """Times models by our programs, one after the other.

    Attributes:
      workload: what is timed.
      about: of the engine, for reports.
      pads_layers: whether layers of several sizes are padded to the widest.
      takes_turns: whether models of a call are timed in turn.
    """

    pads_layers = takes_turns = False

    def __init__(self, source: Source, workload: Workload):
        self._source = source
        self.workload = workload
        self.about = {"name": "jax", "version": jax.__version__, "numbers": workload.dtype}

    def times(self, probes: Sequence[Architecture], sub_models: Sequence[SubModel]) -> list[Timing]:
        """The times of models without weights, then those of sub-models of the run: by their
        shapes, too.
        """
        source = self._source
        architectures = [*probes, *map(source.architecture_of, sub_models)]
        schema = source.plan.schema
        return [measure(architecture, self.workload, schema) for architecture in architectures]


def measure(architecture: Architecture, workload: Workload, schema: Schema | None = None) -> Timing:
    """The time of a plain model of this architecture; its weights' values do not matter.

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


def _time(call: Callable[[], Any]) -> Timing:
    # The first call compiles, and is not timed.
    jax.block_until_ready(call())

    times: list[float] = []
    while len(times) < _MIN_REPEATS or (sum(times) < _MIN_SECONDS and len(times) < _MAX_REPEATS):
        start = time.perf_counter()
        # A call returns before the device has done its work.
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)

    # Not the mean: a pause of the machine makes a few runs far too long.
    return Timing.of([1e3 * seconds for seconds in times])
