"""The joint forward pass: all sub-models of a step in one scan over the TA's layers.

The scanned body gathers a layer's weights once, in the compute type, and slices them for each
sub-model (gather, then slice: architecture.md, decision 2). Sub-models with the same sizes in all
layers so far share their hidden states, so a prefix Student of a purely deeper TA costs nothing
extra (decision 7). Widths that are data, not shapes, are branches of a `lax.switch` over the nest's
widths: one compile serves every mix (decision 5).

Shape letters: B batch, T sequence, N tokens (= B·T), D d_model, L layers, M mixes.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from matta_jax.models._gpt import Architecture, Block, Embed, LayerNorm, drop
from matta_jax.models._plain import logical_axes
from matta_jax.models._scorer import Categories, Dense, Extras, Head, seen_positions, with_features
from matta_jax.nesting import Names, Nest, SubModel, Tree, fan_in, join_granules, narrow, sizes_of
from matta_jax.sharding import ONE_DEVICE, Placement

_MAX_STATIC_RUNS = (
    4  # Each run of layers is a scan to compile; a mix of more runs than this goes by lax.switch.
)
_POLICIES: dict[str, Callable[..., Any] | None] = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class _Stream:
    """One sub-model on its way through the layers.

    Attributes:
      sub_model: d_model and heads, and its layers and widths where these are static.
      choice: for a stream that chooses by data, its row of the choice array; else None.
      widths: what each choice means, in neurons; 0 skips the layer.
    """

    sub_model: SubModel
    choice: int | None = None
    widths: tuple[int, ...] = ()

    def history(self, stop: int) -> tuple[Any, ...]:
        """Equal histories mean equal hidden states after `stop` layers."""
        sizes = (self.sub_model.d_model, self.sub_model.num_heads)
        if self.choice is not None:
            return (*sizes, "choice", self.choice)
        return (*sizes, *(self.sub_model.width_of(layer) for layer in range(stop)))


def _streams(
    nest: Nest, sub_models: Sequence[SubModel], mix_choice_ML: jax.Array | None
) -> tuple[list[_Stream], jax.Array]:
    """Returns the streams and the choices [rows, L] of those that choose by data."""
    streams: list[_Stream] = []
    rows: list[jax.Array] = []
    for sub_model in sub_models:
        widths = [sub_model.width_of(layer) for layer in range(nest.ta.num_layers)]
        changes = sum(a != b for a, b in itertools.pairwise(widths))
        if changes < _MAX_STATIC_RUNS:
            streams.append(_Stream(sub_model))
            continue
        options = tuple(sorted(set(widths)))
        streams.append(_Stream(sub_model, choice=len(rows), widths=options))
        rows.append(jnp.array([options.index(width) for width in widths], jnp.int32))
    for mix_L in [] if mix_choice_ML is None else mix_choice_ML:
        streams.append(_Stream(nest.ta, choice=len(rows), widths=nest.widths))
        rows.append(mix_L)
    choices = jnp.stack(rows) if rows else jnp.zeros((0, nest.ta.num_layers), jnp.int32)
    return streams, choices


def _cuts(streams: Sequence[_Stream], num_layers: int) -> list[int]:
    """Layers at which a static stream starts, stops or changes its width, with both ends."""
    cuts = {0, num_layers}
    for stream in streams:
        if stream.choice is None:
            widths = [stream.sub_model.width_of(layer) for layer in range(num_layers)]
            cuts |= {layer for layer in range(1, num_layers) if widths[layer] != widths[layer - 1]}
    return sorted(cuts)


@functools.lru_cache(maxsize=64)
def _graphdef(kind: str) -> nnx.GraphDef:
    sizes = {
        name: 1
        for name in (
            "d_model",
            "qkv",
            "heads",
            "heads_granules",
            "head_dim",
            "d_ff",
            "d_ff_granules",
            "vocab",
            "positions",
            "classes",
            "dense",
            "categories",
        )
    }
    makers: dict[str, Callable[[], nnx.Module]] = {
        "block": lambda: Block(sizes, nnx.Rngs(0), depth=1),
        "embed": lambda: Embed(sizes, nnx.Rngs(0)),
        "norm": lambda: LayerNorm(sizes),
        "head": lambda: Head(sizes, nnx.Rngs(0)),
        "dense": lambda: Dense(sizes, nnx.Rngs(0)),
        "categories": lambda: Categories(sizes, nnx.Rngs(0)),
    }
    return nnx.split(nnx.eval_shape(makers[kind]))[0]


def module_apply(
    kind: str, weights: Tree, *inputs: Any, method: str = "__call__", **options: Any
) -> Any:
    """Runs one module of whatever size its weights have: `embed`, `block` (without a stack of
    layers) or `norm`.
    """
    return getattr(nnx.merge(_graphdef(kind), weights), method)(*inputs, **options)


def block_importance(weights: Tree, x_ND: jax.Array, seq_len: int) -> tuple[jax.Array, jax.Array]:
    """The importance of a block's heads [K, H] and neurons [G, F] on these inputs
    (`Block.importance`).
    """
    return nnx.merge(_graphdef("block"), weights).importance(x_ND, seq_len)


Branch = Callable[[Tree, jax.Array, jax.Array | None], jax.Array]


def _lean_switch(
    choice: jax.Array,
    branches: Sequence[Branch],
    weights: Tree,
    x_ND: jax.Array,
    key: jax.Array | None,
) -> jax.Array:
    """`lax.switch` that keeps its operands alone, and runs the chosen branch again in the backward
    pass.

    By itself a switch keeps what all its branches would, also within a `jax.checkpoint`, whose
    policy counts for all.
    """

    @jax.custom_vjp
    def run(choice: jax.Array, weights: Tree, x_ND: jax.Array, key: jax.Array | None) -> jax.Array:
        return jax.lax.switch(choice, branches, weights, x_ND, key)

    def backward(operands: Any, d_out: jax.Array) -> tuple[Any, ...]:
        choice, *others = operands

        def pullback(branch: Branch) -> Callable[..., tuple[Tree, jax.Array]]:
            return lambda weights, x_ND, key, d_out: jax.vjp(
                lambda w, x: branch(w, x, key), weights, x_ND
            )[1](d_out)

        return (
            None,
            *jax.lax.switch(choice, [pullback(branch) for branch in branches], *others, d_out),
            None,
        )

    run.defvjp(lambda *operands: (run(*operands), operands), backward)
    return run(choice, weights, x_ND, key)


def _for_compute(
    weight: jax.Array, names: Names, placement: Placement, dtype: str, reduce_dtype: str
) -> jax.Array:
    """A weight as layers use it: rounded to `dtype`, then gathered.

    Its gradient is scattered before anything else, so that it is summed over devices only for where
    it goes. A matrix or table whose gradient is to be summed in a wider type is handed on in that
    type, with its rounded values.
    """
    wide = reduce_dtype != "compute" and bool(fan_in(names))

    @jax.custom_vjp
    def ready(weight: jax.Array) -> jax.Array:
        whole = placement.gather(weight.astype(dtype), names)
        return whole.astype(reduce_dtype) if wide else whole

    ready.defvjp(
        lambda weight: (ready(weight), None),
        lambda _, gradient: (placement.scatter(gradient, names).astype(weight.dtype),),
    )
    return ready(weight)


def joint_apply(
    params: Tree,
    tokens_BT: jax.Array,
    sub_models: Sequence[SubModel],
    *,
    nest: Nest,
    axes: Tree,
    mix_choice_ML: jax.Array | None = None,
    extras: Extras | None = None,
    dtype: str = "float32",
    reduce_dtype: str = "compute",
    remat: str = "dots",
    dropout: float = 0.0,
    key: jax.Array | None = None,
    placement: Placement = ONE_DEVICE,
) -> list[jax.Array]:
    """Runs several sub-models of a TA in one pass.

    Args:
      params: the TA's weights, all layers in one stack.
      tokens_BT: token ids.
      sub_models: the static sub-models.
      nest: the nest that they lie in.
      axes: the weights' axis names.
      mix_choice_ML: random mixes of the TA's depth and d_model, each layer an index into
        `nest.widths`; may be traced.
      extras: of a scorer's batch; None for a language model.
      dtype: compute type of activations and matmuls.
      reduce_dtype: type in which gradients of matrices and tables are summed: "compute" for
        `dtype`, or float32.
      remat: what a layer keeps for its backward pass: dots, none (all is kept) or full (nothing
        is).
      dropout: rate on the embeddings and each residual branch; needs `key`.
      key: of dropout; None to drop nothing.
      placement: where weights lie; they are gathered before they are sliced (decision 2).

    Returns:
      The normed hidden states [B·T, d_model of the sub-model]: of the static sub-models, then of
      the mixes. Of a scorer the logits [B, classes], or [B] of a sigmoid.
    """
    seen_BS = _seen(params, tokens_BT, extras)
    seq_len = tokens_BT.shape[1] if seen_BS is None else seen_BS.shape[1]
    num_layers = nest.ta.num_layers
    streams, choices_SL = _streams(nest, sub_models, mix_choice_ML)
    layer_axes = jax.tree.map(
        lambda names: names[1:], axes["blocks"]["0"], is_leaf=lambda node: type(node) is tuple
    )

    def ready(weights: Tree, axes: Tree) -> Tree:
        use = lambda weight, names: _for_compute(weight, names, placement, dtype, reduce_dtype)
        return jax.tree.map(use, weights, axes)

    def run_layer(
        stream: _Stream,
        width: int,
        weights: Tree,
        x_ND: jax.Array,
        key: jax.Array | None,
        method: str = "__call__",
    ) -> jax.Array:
        if width == 0:
            return x_ND
        own = narrow(weights, layer_axes, sizes_of(stream.sub_model, width))
        if placement.joins:
            own = join_granules(own, layer_axes)
        context = () if method == "feed" else (seq_len, seen_BS)
        return module_apply("block", own, x_ND, *context, method=method, dropout=dropout, key=key)

    def run_chosen(
        stream: _Stream, choice: jax.Array, weights: Tree, x_ND: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        """Runs a layer of a width that is data."""
        method = "__call__"
        if 0 not in stream.widths:  # Attention is the same in all.
            x_ND = run_layer(stream, stream.widths[0], weights, x_ND, key, "attend")
            method = "feed"
        branches = [
            functools.partial(run_layer, stream, width, method=method) for width in stream.widths
        ]
        if remat == "none":
            return jax.lax.switch(choice, branches, weights, x_ND, key)
        return _lean_switch(choice, branches, weights, x_ND, key)

    def segment(
        start: int, stop: int, running: list[_Stream], hidden: list[jax.Array]
    ) -> list[jax.Array]:
        """Runs layers start to stop of all `running` streams."""

        def body(
            carry: tuple[jax.Array, ...], layer: tuple[Tree, jax.Array, jax.Array]
        ) -> tuple[Any, None]:
            weights, choice_S, index = layer
            weights = ready(weights, layer_axes)
            layer_key = None if key is None else jax.random.fold_in(key, index)
            results = []
            for stream, x_ND in zip(running, carry, strict=True):
                if stream.choice is None:
                    width = stream.sub_model.width_of(start)
                    results.append(run_layer(stream, width, weights, x_ND, layer_key))
                    continue
                results.append(
                    run_chosen(stream, choice_S[stream.choice], weights, x_ND, layer_key)
                )
            return tuple(results), None

        if remat != "none":
            body = jax.checkpoint(body, policy=_POLICIES[remat], prevent_cse=False)
        whole = (start, stop) == (0, num_layers)
        stack = params["blocks"]["0"]
        weights = stack if whole else jax.tree.map(lambda weight: weight[start:stop], stack)
        layers = (weights, choices_SL.T[start:stop], jnp.arange(start, stop))
        return list(jax.lax.scan(body, tuple(hidden), layers)[0])

    outer = {name: ready(params[name], axes[name]) for name in params if name != "blocks"}

    # One look-up for all: columns of a table's rows are rows of its columns.
    widest = max((stream.sub_model for stream in streams), key=lambda sub_model: sub_model.d_model)
    x_ND = _enter(
        narrow(outer, {name: axes[name] for name in outer}, sizes_of(widest)), tokens_BT, extras
    )
    x_ND = drop(
        x_ND.astype(dtype), dropout, None if key is None else jax.random.fold_in(key, num_layers)
    )
    hidden = [x_ND[:, : stream.sub_model.d_model] for stream in streams]
    cuts = _cuts(streams, num_layers)
    for start, stop in itertools.pairwise(cuts):
        leaders: dict[tuple[Any, ...], int] = {}
        for i, stream in enumerate(streams):
            if stream.choice is not None or stream.sub_model.width_of(start):
                leaders.setdefault(stream.history(stop), i)
        running = list(leaders.values())
        moved = segment(start, stop, [streams[i] for i in running], [hidden[i] for i in running])
        after = dict(zip(leaders, moved, strict=True))
        hidden = [
            after.get(stream.history(stop), x_ND)
            for stream, x_ND in zip(streams, hidden, strict=True)
        ]
    ends = {name: outer[name] for name in ("norm", "head") if name in outer}
    return [
        _leave(
            narrow(ends, {name: axes[name] for name in ends}, sizes_of(stream.sub_model)),
            x_ND,
            seen_BS,
        )
        for stream, x_ND in zip(streams, hidden, strict=True)
    ]


def _seen(params: Tree, tokens_BT: jax.Array, extras: Extras | None) -> jax.Array | None:
    """The positions [B, S] that a scorer attends to; None for a language model, whose attention is
    causal.
    """
    if extras is None:
        return None
    has_features = "dense" in params or "categories" in params
    return seen_positions(extras, tokens_BT.shape[1], has_features=has_features)


def _enter(outer: Tree, tokens_BT: jax.Array, extras: Extras | None) -> jax.Array:
    """Embeds a batch; returns the residual stream [B·S, D]."""
    x_ND = module_apply("embed", outer["embed"], tokens_BT)
    features_BD = None
    for name, field in (("dense", "dense"), ("categories", "categorical")):
        if name in outer:
            assert extras is not None
            own_BD = module_apply(name, outer[name], extras[field])
            features_BD = own_BD if features_BD is None else features_BD + own_BD
    return with_features(x_ND, features_BD, tokens_BT.shape[1])


def _leave(outer: Tree, x_ND: jax.Array, seen_BS: jax.Array | None) -> jax.Array:
    """Norms the residual stream; of a scorer, returns the logits."""
    x_ND = module_apply("norm", outer["norm"], x_ND)
    return x_ND if seen_BS is None else module_apply("head", outer["head"], x_ND, seen_BS)


def candidate_apply(
    params: Tree,
    tokens_BT: jax.Array,
    choice_L: jax.Array,
    sub_model: SubModel,
    *,
    nest: Nest,
    axes: Tree,
) -> jax.Array:
    """Runs one sub-model in place whose layers are data, so that one program runs all of a depth
    and width.

    Args:
      params: the TA's weights.
      tokens_BT: token ids.
      choice_L: for each layer of the TA 0 to skip it, or 1 + an index into `nest.widths`; may be
        traced.
      sub_model: tells d_model and heads.
      nest: the nest.
      axes: the weights' axis names.

    Returns:
      The normed hidden states [B·T, d_model], in float32.
    """
    seq_len, sizes = tokens_BT.shape[1], sizes_of(sub_model)
    layer_axes = jax.tree.map(
        lambda names: names[1:], axes["blocks"]["0"], is_leaf=lambda node: type(node) is tuple
    )

    def run(width: int, weights: Tree, x_ND: jax.Array) -> jax.Array:
        own = join_granules(narrow(weights, layer_axes, sizes | {"d_ff": width}), layer_axes)
        return module_apply("block", own, x_ND, seq_len)

    branches: list[Callable[..., jax.Array]] = [
        lambda _, x_ND: x_ND,
        *(functools.partial(run, width) for width in nest.widths),
    ]

    def body(x_ND: jax.Array, layer: tuple[Tree, jax.Array]) -> tuple[jax.Array, None]:
        weights, choice = layer
        return jax.lax.switch(choice, branches, weights, x_ND), None

    x_ND = module_apply("embed", narrow(params["embed"], axes["embed"], sizes), tokens_BT)
    x_ND, _ = jax.lax.scan(body, x_ND, (params["blocks"]["0"], choice_L))
    return module_apply("norm", narrow(params["norm"], axes["norm"], sizes), x_ND)


def sub_model_apply(
    params: Tree,
    tokens_BT: jax.Array,
    sub_model: SubModel,
    *,
    nest: Nest,
    axes: Tree,
    extras: Extras | None = None,
    dtype: str = "float32",
) -> jax.Array:
    """Runs one sub-model in place, as a slice of its TA; returns what `joint_apply` does of it."""
    run = functools.partial(
        joint_apply, nest=nest, axes=axes, extras=extras, dtype=dtype, remat="none"
    )
    return run(params, tokens_BT, [sub_model])[0]


def apply(
    architecture: Architecture,
    params: Tree,
    tokens_BT: jax.Array,
    *,
    extras: Extras | None = None,
    dtype: str = "float32",
    placement: Placement = ONE_DEVICE,
) -> jax.Array:
    """Runs the plain model of `params`, a layer cast and gathered when it runs. Not made to be
    differentiated: it keeps what `joint_apply` would compute again.

    Args:
      architecture: of the model.
      params: its weights.
      tokens_BT: token ids.
      extras: of a scorer's batch; None for a language model.
      dtype: compute type.
      placement: where weights lie.

    Returns:
      The normed hidden states [B·T, D] in the compute type; of a scorer the logits [B, classes], or
      [B].
    """

    def ready(weights: Tree, axes: Tree) -> Tree:
        return jax.tree.map(
            lambda weight, names: placement.gather(weight.astype(dtype), names), weights, axes
        )

    axes = logical_axes(architecture)
    seen_BS = _seen(params, tokens_BT, extras)
    seq_len = tokens_BT.shape[1] if seen_BS is None else seen_BS.shape[1]
    outer = {name: ready(params[name], axes[name]) for name in params if name != "blocks"}
    x_ND = _enter(outer, tokens_BT, extras).astype(dtype)
    for i in range(len(params["blocks"])):
        own = jax.tree.map(
            lambda names: names[1:],
            axes["blocks"][str(i)],
            is_leaf=lambda node: type(node) is tuple,
        )

        def body(x_ND: jax.Array, weights: Tree, own: Tree = own) -> tuple[jax.Array, None]:
            weights = ready(weights, own)
            if placement.joins:
                weights = join_granules(weights, own)
            return module_apply("block", weights, x_ND, seq_len, seen_BS), None

        x_ND, _ = jax.lax.scan(body, x_ND, params["blocks"][str(i)])
    return _leave(outer, x_ND, seen_BS)
