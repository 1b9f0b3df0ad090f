"""The embedder: BERT's post-norm blocks, and a vector of each text.

A vector is what is pooled after the last layer of a model, cut to its first numbers (`embed`); so
models are nested by depth, by vector, by heads and by d_ff. The residual stream is of one width:
its embedding is normed, and the norm of a part is no part of a norm.

A batch of pairs (two texts an example) gives the similarities of each first text to all second ones
of the batch, as logits of which the own one is the class; a batch of texts gives their vectors.

A batch with hidden tokens (SMAE, arXiv 2410.13230) gives the states by which these are told: those
that a model hides from itself by its own last layer, and others by a decoder, one layer that reads
the text's vector and what is not hidden of the text. All of them are cut to their first numbers, as
vectors are, and compared with as much of the table of tokens.

Shape letters: B batch, T sequence, R texts (B, or 2B of pairs), N tokens (= R·T), D d_model,
  E numbers of a vector, K hidden tokens of a text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from immutabledict import immutabledict

from matta_jax.config import EmbedderConfig
from matta_jax.models.families._blocks import PostNormBlock
from matta_jax.models.families._family import Family, Modules, register
from matta_jax.models.families._schema import Input, Inputs, Schema
from matta_jax.models.layers import (
    MLP,
    Attention,
    Build,
    Context,
    Hidden,
    LayerNorm,
    project,
)
from matta_jax.nesting import BLOCKS, SCAFFOLD

DECODED, HIDDEN, HIDDEN_IN_DECODER = "decoded", "hidden", "hidden_in_decoder"
"""Inputs of a batch with hidden tokens, beside its texts: what the decoder reads [B, 2, T], and the
positions that are hidden from the models and from the decoder [B, 2, K].
"""

# A vector of zeros stays one.
_SMALLEST_SQUARE = 1e-24
# Stands for a similarity to what fills up a batch; finite, so that its products with 0 are 0.
_NONE = -1e9


class Embed(nnx.Module):
    """Token, position and type embeddings, normed."""

    def __init__(self, build: Build):
        self.pooling = build.options["pooling"]
        self.tokens = build.weight("vocab", "d_model")
        self.positions = build.weight("positions", "d_model")
        self.types = build.weight("types", "d_model")
        self.norm = LayerNorm(build)

    def __call__(self, tokens_RT: jax.Array) -> jax.Array:
        """Returns the embedded tokens [N, D]."""
        positions_TD = self.positions[...][: tokens_RT.shape[1]]
        # All texts are of the first type: second ones are read by themselves.
        x_RTD = self.tokens[...][tokens_RT] + self.types[...][0] + positions_TD
        return self.norm(x_RTD.reshape(-1, x_RTD.shape[-1]))


class BertBlock(PostNormBlock):
    """BERT's transformer block."""

    def __init__(self, build: Build):
        self.attention = Attention(build)
        self.norm_attention = LayerNorm(build)
        self.mlp = MLP(build)
        self.norm_mlp = LayerNorm(build)


def _pooled(x_ND: jax.Array, read_RT: jax.Array, size: int) -> jax.Array:
    """The vectors [R, size] of texts, of length 1, in float32: the mean over what is read."""
    x_RTD = x_ND.reshape(*read_RT.shape, -1)
    counted_RT1 = read_RT[..., None].astype(jnp.float32)
    pooled_RD = (x_RTD * counted_RT1).sum(1) / counted_RT1.sum(1)
    # Cut, then normed: each size is compared by cosines of its own.
    vectors_RE = pooled_RD[:, :size]
    squares_R1 = jnp.sum(vectors_RE * vectors_RE, axis=-1, keepdims=True)
    return vectors_RE * jax.lax.rsqrt(jnp.maximum(squares_R1, _SMALLEST_SQUARE))


class Decoder(nnx.Module):
    """What tells a text from its vector, and from that part of it that it sees: one layer."""

    def __init__(self, build: Build):
        self.w = build.weight(SCAFFOLD, "embed", "d_model")
        self.norm = LayerNorm(build)
        self.block = BertBlock(build)

    def __call__(self, x_ND: jax.Array, vectors_RE: jax.Array, context: Context) -> jax.Array:
        """Returns the states [N, E] of all hidden tokens: of each text those of the model, whose
        last residual stream is `x_ND`, then those of the decoder.
        """
        hidden = context.hidden
        assert hidden is not None
        num_texts, size = vectors_RE.shape
        # The vector takes the place of the first token, which is the start of every text.
        first_RD = self.norm(project("re,ed->rd", vectors_RE.astype(x_ND.dtype), self.w[...]))
        seen_RTD = hidden.decoded_BSD.astype(x_ND.dtype)[..., : x_ND.shape[-1]]
        read_RTD = jnp.concatenate([first_RD[:, None], seen_RTD[:, 1:]], axis=1)
        decoded_ND = self.block(read_RTD.reshape(x_ND.shape), context)

        states = []
        told = ((x_ND, hidden.in_model_BK), (decoded_ND, hidden.in_decoder_BK))
        for states_ND, positions_RK in told:
            states_RTE = states_ND[:, :size].reshape(num_texts, -1, size)
            states.append(jnp.take_along_axis(states_RTE, positions_RK[..., None], axis=1))
        return jnp.concatenate(states, axis=1).reshape(-1, size)


class Embedder(Family):
    """The family of embedders."""

    name = "embedder"
    section = EmbedderConfig
    modules = {"embed": Embed, BLOCKS: BertBlock, "decoder": Decoder}  # noqa: RUF012
    exits = ("decoder",)
    table = None
    scaffold_table = "embed/tokens"
    is_causal = False
    compares_rows = True
    usage = "vectors = matta_jax.embed(model, texts)  # float32 [texts, numbers]"

    def fixed_sizes(self, model: Any) -> dict[str, int]:
        return {
            "vocab": model.vocab_size,
            "positions": model.max_len,
            "types": model.num_types,
            "head_dim": model.head_width,
            "qkv": 3,
        }

    def options(self, model: Any, layers: Sequence[int]) -> Mapping[str, Any]:
        del layers
        return immutabledict(
            pooling=model.pooling,
            activation=model.activation,
            layer_norm_epsilon=model.layer_norm_epsilon,
            similarity_scale=model.similarity_scale,
        )

    def fields_of(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        return immutabledict(options)

    def has(self, module: str, sizes: Mapping[str, int], options: Mapping[str, Any]) -> bool:
        del options
        return module != "decoder" or sizes.get(SCAFFOLD, 0) > 0

    def schema(self, model: Any) -> Schema:
        tokens = Input((None,), "int32", entries="vocab", limit=model.vocab_size)
        return Schema({"tokens": tokens, "length": Input((), "int32")}, kind="pairs")

    def logits_of(self, output: jax.Array, inputs: Inputs, options: Mapping[str, Any]) -> jax.Array:
        """Of pairs the similarities [B, B] of each first text to all second ones: scaled
        cosines.
        """
        if DECODED in inputs:
            return output
        first_BE, second_BE = output[::2], output[1::2]
        logits_BB = options["similarity_scale"] * (first_BE @ second_BE.T)
        # What fills up a batch is no candidate, but for itself.
        is_text_B = inputs["length"][:, 1] > 0
        is_pair_BB = is_text_B[:, None] & is_text_B
        is_candidate_BB = is_pair_BB | jnp.eye(len(is_text_B), dtype=bool)
        return jnp.where(is_candidate_BB, logits_BB, _NONE)

    def enter(
        self,
        modules: Modules,
        inputs: Inputs,
        start: jax.Array | None = None,
    ) -> tuple[jax.Array, Context]:
        tokens, length = inputs["tokens"], inputs["length"]
        seq_len = tokens.shape[-1]
        length_R1 = length.reshape(-1, 1)
        # A softmax over no position, or their mean, would be no number.
        seen_RT = jnp.arange(seq_len) < jnp.maximum(length_R1, 1)
        x_ND = modules["embed"](tokens.reshape(-1, seq_len))
        is_first_T = jnp.arange(seq_len) == 0
        is_mean = modules["embed"].pooling == "mean"
        read_RT = seen_RT if is_mean else jnp.broadcast_to(is_first_T, seen_RT.shape)
        hidden = None
        if DECODED in inputs:
            decoded_ND = modules["embed"](inputs[DECODED].reshape(-1, seq_len))
            hidden = Hidden(
                in_model_BK=inputs[HIDDEN].reshape(len(seen_RT), -1),
                in_decoder_BK=inputs[HIDDEN_IN_DECODER].reshape(len(seen_RT), -1),
                decoded_BSD=decoded_ND.reshape(*seen_RT.shape, -1),
            )
        return x_ND, Context(seq_len, seen_RT, read_BS=read_RT, hidden=hidden)

    def leave(
        self, modules: Modules, x_ND: jax.Array, context: Context, sizes: Mapping[str, int]
    ) -> jax.Array:
        assert context.read_BS is not None
        vectors_RE = _pooled(x_ND, context.read_BS, sizes["embed"])
        if context.hidden is None:
            return vectors_RE
        return modules["decoder"](x_ND, vectors_RE, context)


register(Embedder())
