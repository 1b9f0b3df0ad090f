"""GPT-2 as plain Flax NNX modules, of whatever size their weights have. They know nothing of
nesting.

Every weight names its logical axes in the metadata `axes`. Shape letters:
  B batch, T sequence, N tokens (= B·T), D d_model, V vocab, L layers,
  K head granules, H heads of a granule, E head_dim, G d_ff granules, F neurons of a granule, C q, k
  and v.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from matta_jax.config import ModelConfig
from matta_jax.nesting import Nest, SubModel, fan_in

# Against the embedding's unit-norm rows. Larger ones drown a token in its context's average while
# attention is still uniform: 200 steps of the quickstart end at 2.11 nats with 0.25, and 500 at
# 2.16 with 1.
_RESIDUAL_SCALE = 0.25
_NORM_EPSILON = 1e-5
_BLOCKS, _SMALLEST = (
    4,
    64,
)  # Of causal attention's queries: how many at most, and the fewest queries of one.


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The sizes of a plain model: everything needed to build it.

    Attributes:
      vocab_size, max_len, d_model, num_heads, head_dim: sizes, as in GPT-2.
      d_ff: the hidden width of each layer.
      head_granule, d_ff_granule: how many heads and neurons the inner axes of the weights hold.
      num_classes: outputs of a scorer; 0 for a language model.
      num_dense, categories: a scorer's dense features, and the values of each categorical one.
    """

    vocab_size: int
    max_len: int
    d_model: int
    num_heads: int
    head_dim: int
    d_ff: tuple[int, ...]
    head_granule: int
    d_ff_granule: int
    num_classes: int = 0
    num_dense: int = 0
    categories: tuple[int, ...] = ()

    @property
    def granules(self) -> dict[str, int]:
        """The sizes of granules, by logical axis."""
        return {"heads": self.head_granule, "d_ff": self.d_ff_granule}

    @property
    def sub_model(self) -> SubModel:
        """The whole model, as a SubModel of itself."""
        return SubModel(self.d_model, self.num_heads, tuple(range(len(self.d_ff))), self.d_ff)


def architecture_of(model: ModelConfig, nest: Nest, sub_model: SubModel) -> Architecture:
    """The plain model that `sub_model` becomes when it is extracted."""
    return Architecture(
        vocab_size=model.vocab_size,
        max_len=model.max_len,
        d_model=sub_model.d_model,
        num_heads=sub_model.num_heads,
        head_dim=nest.head_dim,
        d_ff=sub_model.d_ff,
        head_granule=nest.head_granule,
        d_ff_granule=nest.d_ff_granule,
        num_classes=model.num_classes if model.name == "scorer" else 0,
        num_dense=model.num_dense,
        categories=model.categories,
    )


def weight(rngs: nnx.Rngs, sizes: Mapping[str, int], *axes: str, scale: float = 1.0) -> nnx.Param:
    """A matrix or table of variance scale²/fan-in, or a bias of zeros: its axes tell which."""
    shape = tuple(sizes[name] for name in axes)
    inputs = fan_in(axes)
    if not inputs:
        return nnx.Param(jnp.zeros(shape), axes=axes)
    std = scale / math.sqrt(math.prod(shape[i] for i in inputs))
    return nnx.Param(std * jax.random.normal(rngs.params(), shape), axes=axes)


def _plain_product(subscripts: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, x, weight.astype(x.dtype))


def _product_forward(subscripts: str, x: jax.Array, weight: jax.Array) -> tuple[jax.Array, Any]:
    return _plain_product(subscripts, x, weight), (
        x,
        weight,
    )  # A dot that the checkpoint policy can see, and keep.


def _product_backward(
    subscripts: str, operands: Any, d_out: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, weight = operands
    x_axes, weight_axes, out = subscripts.replace("->", ",").split(",")
    sums = functools.partial(jnp.einsum, preferred_element_type=weight.dtype)

    def on_cpu(small: jax.Array, large: jax.Array, small_axes: str, large_axes: str) -> jax.Array:
        # XLA's fast products sum over the last axis of the first operand, and it would not turn one
        # by itself.
        turned, rest = (
            jax.lax.optimization_barrier(jnp.moveaxis(small, 0, -1)),
            small_axes[1:] + large_axes[1:],
        )
        found = sums(f"{small_axes[1:]}{small_axes[0]},{large_axes}->{rest}", turned, large)
        return jnp.einsum(f"{rest}->{weight_axes}", jax.lax.optimization_barrier(found))

    pair = [(x, x_axes), (d_out, out)]
    (small, small_axes), (large, large_axes) = pair if x.size <= d_out.size else pair[::-1]
    d_weight = jax.lax.platform_dependent(
        small,
        large,
        cpu=functools.partial(on_cpu, small_axes=small_axes, large_axes=large_axes),
        default=functools.partial(sums, f"{small_axes},{large_axes}->{weight_axes}"),
    )
    return jnp.einsum(f"{out},{weight_axes}->{x_axes}", d_out, weight.astype(x.dtype)), d_weight


_product = jax.custom_vjp(_plain_product, nondiff_argnums=(0,))
_product.defvjp(_product_forward, _product_backward)


def _project(subscripts: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    """An einsum over tokens, x's first axis, in its type; a wider weight has its gradient summed in
    its own type.

    Axes of one entry are left out of it: they would hide from compilers that these are products of
    plain matrices.
    """
    x_axes, weight_axes, out_axes = subscripts.replace("->", ",").split(",")
    sizes = dict(zip(x_axes, x.shape, strict=True)) | dict(
        zip(weight_axes, weight.shape, strict=True)
    )
    left = [
        "".join(axis for axis in axes if sizes[axis] > 1 or axis not in weight_axes)
        for axes in (x_axes, weight_axes, out_axes)
    ]
    shape = lambda axes: [sizes[axis] for axis in axes]
    x, weight = x.reshape(shape(left[0])), weight.reshape(shape(left[1]))
    return _product(f"{left[0]},{left[1]}->{left[2]}", x, weight).reshape(shape(out_axes))


class LayerNorm(nnx.Module):
    """Layer normalisation with scale and bias; statistics in float32, over the d_model that it is
    given.
    """

    def __init__(self, sizes: Mapping[str, int]):
        self.scale = nnx.Param(jnp.ones(sizes["d_model"]), axes=("d_model",))
        self.bias = nnx.Param(jnp.zeros(sizes["d_model"]), axes=("d_model",))

    def __call__(self, x_ND: jax.Array) -> jax.Array:
        x_32 = x_ND.astype(jnp.float32)
        mean = jnp.mean(x_32, axis=-1, keepdims=True)
        centred = x_32 - mean
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + _NORM_EPSILON)
        return (normed * self.scale[...] + self.bias[...]).astype(x_ND.dtype)


class Attention(nnx.Module):
    """Self-attention. The softmax is normalised after the values are summed, which saves a pass."""

    def __init__(self, sizes: Mapping[str, int], rngs: nnx.Rngs, *, out_scale: float):
        self.w_qkv = weight(rngs, sizes, "heads_granules", "d_model", "qkv", "heads", "head_dim")
        self.b_qkv = weight(rngs, sizes, "heads_granules", "qkv", "heads", "head_dim")
        self.w_out = weight(
            rngs, sizes, "heads_granules", "heads", "head_dim", "d_model", scale=out_scale
        )
        self.b_out = weight(rngs, sizes, "d_model")

    def _project(self, x_ND: jax.Array, seq_len: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns queries, keys and values [B, K, H, T, E]."""
        qkv_NKCHE = _project("nd,kdche->nkche", x_ND, self.w_qkv[...]) + self.b_qkv[...]
        qkv_BTKCHE = qkv_NKCHE.reshape(-1, seq_len, *qkv_NKCHE.shape[1:])
        parts = jax.lax.split(
            qkv_BTKCHE, (1, 1, 1), axis=3
        )  # Its gradient is put together, that of slices added up.
        q, k, v = (jnp.transpose(part[:, :, :, 0], (0, 2, 3, 1, 4)) for part in parts)
        return q, k, v

    def mix(self, x_ND: jax.Array, seq_len: int, seen_BS: jax.Array | None = None) -> jax.Array:
        """Returns what each head has gathered [N, K, H, E], as `__call__` does."""
        return self._mix(*self._project(x_ND, seq_len), seen_BS).astype(x_ND.dtype)

    def _mix(
        self, q: jax.Array, k: jax.Array, v: jax.Array, seen_BS: jax.Array | None = None
    ) -> jax.Array:
        q, seq_len = q / math.sqrt(q.shape[-1]), q.shape[-2]
        if seen_BS is not None:
            mixed = _attend(q, k, v, seen_BS[:, None, None, None, :])
        # Each block of queries leaves out the keys after it, which saves 3/8 of the work in four
        # blocks.
        else:
            causal_TS, size = (
                jnp.tril(jnp.ones((seq_len, seq_len), bool)),
                max(-(-seq_len // _BLOCKS), _SMALLEST),
            )
            ends = [(start, min(start + size, seq_len)) for start in range(0, seq_len, size)]
            parts = [
                _attend(
                    q[..., start:end, :],
                    k[..., :end, :],
                    v[..., :end, :],
                    causal_TS[start:end, :end],
                )
                for start, end in ends
            ]
            mixed = jnp.concatenate(parts, axis=-2)
        return jnp.moveaxis(mixed, -2, 1).reshape(-1, *q.shape[1:3], q.shape[-1])

    def _out(self, mixed_NKHE: jax.Array) -> jax.Array:
        w_KHED = self.w_out[...]
        w_KFD = w_KHED.reshape(
            len(w_KHED), -1, w_KHED.shape[-1]
        )  # One axis to sum over, not two that XLA would turn.
        return (
            _project("nkf,kfd->nd", mixed_NKHE.reshape(*mixed_NKHE.shape[:2], -1), w_KFD)
            + self.b_out[...]
        )

    def __call__(
        self, x_ND: jax.Array, seq_len: int, seen_BS: jax.Array | None = None
    ) -> jax.Array:
        """Attends over sequences: each position to itself and those before; with `seen_BS`, all to
        these positions, of which each sequence needs one."""
        return self._out(self.mix(x_ND, seq_len, seen_BS))

    def prefill(
        self, x_ND: jax.Array, seq_len: int
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """As `__call__`, with the keys and values [B, K, H, T, E] for `decode`."""
        q, k, v = self._project(x_ND, seq_len)
        return self._out(self._mix(q, k, v).astype(x_ND.dtype)), (k, v)

    def decode(
        self, x_BD: jax.Array, cache: tuple[jax.Array, jax.Array], position: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Attends from one new token per row; returns its output and the keys and values [B·K·H, S,
        E] with its own at `position`."""
        q, *new = self._project(x_BD, 1)
        flat = lambda x_BKHTE: x_BKHTE.reshape(
            -1, *x_BKHTE.shape[-2:]
        )  # As it is kept: any other shape is a copy of it.
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(old, flat(own).astype(old.dtype), position, axis=1)
            for old, own in zip(cache, new, strict=True)
        )
        seen_S = jnp.arange(keys.shape[1]) <= position
        mixed = _attend(flat(q) / math.sqrt(q.shape[-1]), keys, values, seen_S)
        return self._out(mixed.reshape(q.shape)[:, :, :, 0].astype(x_BD.dtype)), (keys, values)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, may_see: jax.Array) -> jax.Array:
    """Softmax attention of scaled queries [..., T, E] to keys [..., S, E]; `may_see` fits [..., T,
    S].
    """
    scores = jnp.einsum("...te,...se->...ts", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(may_see, scores, -jnp.inf)
    unnormed = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    summed = jnp.einsum("...ts,...se->...te", unnormed.astype(v.dtype), v)
    return summed / unnormed.sum(-1, keepdims=True)


class MLP(nnx.Module):
    """The feed-forward layer, with GPT-2's tanh approximation of GELU."""

    def __init__(self, sizes: Mapping[str, int], rngs: nnx.Rngs, *, out_scale: float):
        self.w_in = weight(rngs, sizes, "d_ff_granules", "d_model", "d_ff")
        self.b_in = weight(rngs, sizes, "d_ff_granules", "d_ff")
        self.w_out = weight(rngs, sizes, "d_ff_granules", "d_ff", "d_model", scale=out_scale)
        self.b_out = weight(rngs, sizes, "d_model")

    def hidden(self, x_ND: jax.Array) -> jax.Array:
        """Returns the neurons' activations [N, G, F]."""
        hidden_NGF = _project("nd,gdf->ngf", x_ND, self.w_in[...]) + self.b_in[...]
        return jax.nn.gelu(hidden_NGF, approximate=True)

    def __call__(self, x_ND: jax.Array) -> jax.Array:
        return _project("ngf,gfd->nd", self.hidden(x_ND), self.w_out[...]) + self.b_out[...]


class Block(nnx.Module):
    """A pre-norm transformer block."""

    def __init__(self, sizes: Mapping[str, int], rngs: nnx.Rngs, *, depth: int):
        out_scale = _RESIDUAL_SCALE / math.sqrt(
            2 * depth
        )  # GPT-2: branches shrink with depth, and add up to one scale.
        self.norm_attention = LayerNorm(sizes)
        self.attention = Attention(sizes, rngs, out_scale=out_scale)
        self.norm_mlp = LayerNorm(sizes)
        self.mlp = MLP(sizes, rngs, out_scale=out_scale)

    def attend(
        self,
        x_ND: jax.Array,
        seq_len: int,
        seen_BS: jax.Array | None = None,
        *,
        dropout: float = 0.0,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the residual stream after attention."""
        key = None if key is None else jax.random.split(key)[0]
        return x_ND + drop(
            self.attention(self.norm_attention(x_ND), seq_len, seen_BS), dropout, key
        )

    def feed(
        self, x_ND: jax.Array, *, dropout: float = 0.0, key: jax.Array | None = None
    ) -> jax.Array:
        """Returns the residual stream after the MLP, of that after attention."""
        key = None if key is None else jax.random.split(key)[1]
        return x_ND + drop(self.mlp(self.norm_mlp(x_ND)), dropout, key)

    def __call__(
        self,
        x_ND: jax.Array,
        seq_len: int,
        seen_BS: jax.Array | None = None,
        *,
        dropout: float = 0.0,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the new residual stream. Without a `key` nothing is dropped; `seen_BS` is that of
        `Attention`.
        """
        return self.feed(
            self.attend(x_ND, seq_len, seen_BS, dropout=dropout, key=key), dropout=dropout, key=key
        )

    def prefill(
        self, x_ND: jax.Array, seq_len: int
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """As `Attention.prefill`, for the whole block."""
        attended, cache = self.attention.prefill(self.norm_attention(x_ND), seq_len)
        return self.feed(x_ND + attended), cache

    def decode(
        self, x_BD: jax.Array, cache: tuple[jax.Array, jax.Array], position: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """As `Attention.decode`, for the whole block."""
        attended, cache = self.attention.decode(self.norm_attention(x_BD), cache, position)
        x_BD = x_BD + attended
        return x_BD + self.mlp(self.norm_mlp(x_BD)), cache

    def importance(
        self, x_ND: jax.Array, seq_len: int, seen_BS: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns how much each head [K, H] and each neuron [G, F] adds to the residual stream: the
        mean norm of its part of the branch's output over tokens."""
        mixed_NKHE = self.attention.mix(self.norm_attention(x_ND), seq_len, seen_BS)
        parts_NKHD = jnp.einsum("nkhe,khed->nkhd", mixed_NKHE, self.attention.w_out[...])
        x_ND = self.attend(x_ND, seq_len, seen_BS)
        hidden_NGF = self.mlp.hidden(self.norm_mlp(x_ND))
        norms_GF = jnp.linalg.norm(self.mlp.w_out[...], axis=-1)
        return jnp.linalg.norm(parts_NKHD, axis=-1).mean(0), jnp.abs(hidden_NGF).mean(0) * norms_GF


def _block(sizes: Mapping[str, int], depth: int, key: jax.Array) -> Block:
    return Block(sizes, nnx.Rngs(key), depth=depth)


def drop(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Dropout; nothing is dropped without a key."""
    if key is None or not rate:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


class Embed(nnx.Module):
    """Token and learned position embeddings; the token table is the head too."""

    def __init__(self, sizes: Mapping[str, int], rngs: nnx.Rngs):
        self.tokens = weight(rngs, sizes, "vocab", "d_model")
        self.positions = weight(rngs, sizes, "positions", "d_model")

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        x_BTD = self.tokens[...][tokens_BT] + self.positions[...][: tokens_BT.shape[1]]
        return x_BTD.reshape(-1, x_BTD.shape[-1])


class GPT(nnx.Module):
    """A decoder-only language model, one scanned stack of blocks for each run of layers of equal
    width.
    """

    def __init__(self, architecture: Architecture, rngs: nnx.Rngs):
        sizes = {
            "vocab": architecture.vocab_size,
            "positions": architecture.max_len,
            "d_model": architecture.d_model,
            "qkv": 3,
            "heads": architecture.head_granule,
            "heads_granules": architecture.num_heads // architecture.head_granule,
            "head_dim": architecture.head_dim,
            "d_ff": architecture.d_ff_granule,
        }
        depth = len(architecture.d_ff)
        self.embed = Embed(sizes, rngs)
        self.blocks: nnx.Dict = nnx.Dict()
        for i, run in enumerate(architecture.sub_model.runs):
            own = sizes | {"d_ff_granules": run.d_ff // architecture.d_ff_granule}
            keys = jax.random.split(rngs.params(), len(run.layers))
            self.blocks[str(i)] = nnx.vmap(functools.partial(_block, own, depth))(keys)
        self.norm = LayerNorm(sizes)


def logits(hidden_ND: jax.Array, table_VD: jax.Array) -> jax.Array:
    """Returns float32 logits [N, V] of hidden states under the tied embedding, of which the first D
    columns count.
    """
    table = table_VD[:, : hidden_ND.shape[-1]].astype(hidden_ND.dtype)
    return jnp.einsum("nd,vd->nv", hidden_ND, table, preferred_element_type=jnp.float32)
