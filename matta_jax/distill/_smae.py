"""SMAE (Starbucks Masked Autoencoding, arXiv 2410.13230): tokens of texts are hidden, and told.

Of each text a share is hidden from the models, which tell these tokens by their last layer (masked
language modelling), and another, larger share from a decoder, which tells them by the text's vector
and what it still sees. The loss of a model is the mean of both, each the mean over texts of the
mean cross-entropy of a text's hidden tokens.

Shape letters: B pairs, R texts (= 2B), T sequence, K hidden tokens of a text.
"""

import dataclasses

import jax
import jax.numpy as jnp

from matta_jax.config import ObjectiveConfig
from matta_jax.models import Targets
from matta_jax.models.families import DECODED, HIDDEN, HIDDEN_IN_DECODER

# Of a pair's weight, for each text and each of the two that tell its tokens.
_PARTS = 4
# Layers fold their index into the key of a step, which no model has as many of.
_HIDING = 2**31 - 1


def hide_tokens(targets: Targets, config: ObjectiveConfig, key: jax.Array | None) -> Targets:
    """A batch of pairs of which tokens are hidden; each text stands for itself.

    Args:
      targets: the pairs.
      config: the shares of what is hidden, and the id that stands for it.
      key: of the step: the same key hides the same tokens; None, as in evaluation: always these.

    Returns:
      Inputs with hidden tokens, and these tokens as labels. The weights of a pair's tokens add up
      to that of the pair.
    """
    assert config.mask_id is not None
    tokens_BCT, length_BC = targets.inputs["tokens"], targets.inputs["length"]
    shape = tokens_BCT.shape
    tokens_RT, length_R = tokens_BCT.reshape(-1, shape[-1]), length_BC.reshape(-1)
    weights_R1 = jnp.repeat(targets.weights_N, shape[1])[:, None]

    read, positions, labels, weights = [], [], [], []
    shares = (config.encoder_masks, config.decoder_masks)
    hiding_key = jax.random.fold_in(jax.random.key(0) if key is None else key, _HIDING)
    for share, part_key in zip(shares, jax.random.split(hiding_key), strict=True):
        positions_RK, is_hidden_RK = _chosen(length_R, shape[-1], share, part_key)
        rows_R1 = jnp.arange(len(tokens_RT))[:, None]
        labels_RK = tokens_RT[rows_R1, positions_RK]
        # What is not hidden keeps its token.
        tokens_RK = jnp.where(is_hidden_RK, config.mask_id, labels_RK)
        read.append(tokens_RT.at[rows_R1, positions_RK].set(tokens_RK).reshape(shape))
        positions.append(positions_RK.reshape(*shape[:2], -1))
        labels.append(labels_RK)
        counts_R1 = jnp.maximum(is_hidden_RK.sum(1, keepdims=True), 1)
        weights.append(is_hidden_RK * weights_R1 / (_PARTS * counts_R1))

    inputs = {
        "tokens": read[0],
        "length": length_BC,
        DECODED: read[1],
        HIDDEN: positions[0],
        HIDDEN_IN_DECODER: positions[1],
    }
    return dataclasses.replace(
        targets,
        inputs=inputs,
        labels_N=jnp.concatenate(labels, axis=1).reshape(-1),
        weights_N=jnp.concatenate(weights, axis=1).reshape(-1),
    )


def _chosen(
    length_R: jax.Array, seq_len: int, share: float, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Positions [R, K] of each text, and whether each of them is hidden: the share of its tokens,
    at least one of a text that has some; never its start or its end.
    """
    positions_T = jnp.arange(seq_len)
    is_token_RT = (positions_T > 0) & (positions_T < length_R[:, None] - 1)
    num_tokens_R = is_token_RT.sum(1)
    counts_R = jnp.minimum(jnp.maximum(jnp.round(share * num_tokens_R), 1), num_tokens_R)
    most = max(round(share * (seq_len - 2)), 1)

    # What is no token comes last, and each token as its number falls.
    drawn_RT = jax.random.uniform(key, is_token_RT.shape)
    order_RT = jnp.argsort(jnp.where(is_token_RT, drawn_RT, 2.0), axis=1)
    is_hidden_RK = jnp.arange(most) < counts_R[:, None]
    return order_RT[:, :most], is_hidden_RK
