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
    abstract_params,
    apply,
    decode,
    decoder_weights,
    init_cache,
    logits,
)
from matta_jax.nesting import SubModel
from matta_jax.selection._space import Family

MODES = ("prefill", "decode")
_MIN_SECONDS, _MIN_REPEATS, _MAX_REPEATS = 0.3, 5, 200


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
        for name in ("batch_size", "length"):
            if getattr(self, name) < 1:
                raise UserError(f"latency_{name}={getattr(self, name)} must be at least 1")


def measure_ms(architecture: Architecture, workload: Workload) -> float:
    """The median time, in milliseconds, of a plain model of this architecture; its weights' values
    do not matter.

    Raises:
      UserError: the workload is longer than the model's positions.
    """
    if workload.length > architecture.max_len:
        raise UserError(
            f"latency_length={workload.length} must be at most model.max_len={architecture.max_len}"
        )
    params = jax.tree.map(
        lambda leaf: jnp.full(leaf.shape, 0.01, workload.dtype), abstract_params(architecture)
    )
    batch_size, length = workload.batch_size, workload.length
    if workload.mode == "prefill":
        tokens_BT = jnp.zeros((batch_size, length), jnp.int32)

        @jax.jit
        def prefill(params: Any, tokens_BT: jax.Array) -> jax.Array:
            hidden_ND = apply(architecture, params, tokens_BT, dtype=workload.dtype)
            last_BD = hidden_ND.reshape(batch_size, length, -1)[:, -1]
            return logits(last_BD, params["embed"]["tokens"])

        return _time(lambda: prefill(params, tokens_BT))
    tokens_B = jnp.zeros((batch_size,), jnp.int32)
    cache = init_cache(architecture, batch_size=batch_size, length=length, dtype=workload.dtype)

    @functools.partial(jax.jit, donate_argnums=2)
    def step(params: Any, tokens_B: jax.Array, cache: Any) -> Any:
        hidden_BD, new = decode(params, tokens_B, cache, jnp.int32(length - 1))
        return logits(hidden_BD, params["embed"]["tokens"]), new

    weights = decoder_weights(architecture, params)

    def one_more() -> jax.Array:
        nonlocal cache
        z_BV, cache = step(weights, tokens_B, cache)  # In place, as in generation.
        return z_BV

    return _time(one_more)


def _time(call: Callable[[], Any]) -> float:
    jax.block_until_ready(call())
    times: list[float] = []
    while len(times) < _MIN_REPEATS or (sum(times) < _MIN_SECONDS and len(times) < _MAX_REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


class LatencyModel:
    """Predicts the time of a sub-model as a sum over its layers.

    The time of one layer of a width is half the difference between models of four and of two such
    layers; what is left of these is the time of what is not layers.
    """

    def __init__(self, source: Source, workload: Workload):
        self._source, self.workload = source, workload
        self._parts: dict[tuple[int, int], tuple[float, dict[int, float]]] = {}

    def linear(self, family: Family) -> tuple[float, dict[int, float]]:
        """Milliseconds of a family's model without layers, and of a layer of each width; measured
        once.
        """
        key = (family.d_model, family.num_heads)
        if key not in self._parts:
            layers, rest = {}, []
            for width in self._source.nest.widths:
                two, four = (self._of_depth(*key, width, depth) for depth in (2, 4))
                layers[width] = max((four - two) / 2, 0.0)
                rest.append(max(two - 2 * layers[width], 0.0))
            self._parts[key] = (statistics.median(rest), layers)
        return self._parts[key]

    def __call__(self, sub_model: SubModel) -> float:
        """Returns the predicted milliseconds."""
        base, layers = self.linear(Family(sub_model.d_model, sub_model.num_heads, sub_model.layers))
        return base + sum(layers[width] for width in sub_model.d_ff)

    def measured(self, sub_model: SubModel) -> float:
        """Times the whole model."""
        return measure_ms(self._source.architecture_of(sub_model), self.workload)

    def _of_depth(self, d_model: int, num_heads: int, width: int, depth: int) -> float:
        stack = SubModel(d_model, num_heads, tuple(range(depth)), (width,) * depth)
        return measure_ms(self._source.architecture_of(stack), self.workload)
