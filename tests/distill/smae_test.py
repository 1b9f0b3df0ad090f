"""What SMAE hides of texts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax.config import ObjectiveConfig
from matta_jax.distill import hide_tokens
from matta_jax.models import Targets
from matta_jax.models.families import DECODED, HIDDEN, HIDDEN_IN_DECODER

MASK = 99
CONFIG = ObjectiveConfig(pair_loss="smae", mask_id=MASK, encoder_masks=0.2, decoder_masks=0.5)
LENGTHS = np.array([[20, 7], [3, 2], [20, 12]])


def targets_of(weights=(1.0, 1.0, 0.0)):
    """Three pairs of 20 positions, of which what is no text has the id 0."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 90, (3, 2, 20))
    tokens[np.arange(20) >= LENGTHS[..., None]] = 0
    inputs = {"tokens": jnp.asarray(tokens), "length": jnp.asarray(LENGTHS)}
    return Targets(inputs, jnp.arange(3), jnp.asarray(weights))


def hidden_in(read, tokens):
    """Whether each token is hidden [6, 20]."""
    return np.asarray(read).reshape(6, 20) != np.asarray(tokens).reshape(6, 20)


def test_a_share_of_each_text_is_hidden_and_never_its_start_or_end():
    targets = targets_of()
    result = hide_tokens(targets, CONFIG, jax.random.key(3))
    tokens, lengths = targets.inputs["tokens"], LENGTHS.ravel()
    for name, share in (("tokens", 0.2), (DECODED, 0.5)):
        is_hidden = hidden_in(result.inputs[name], tokens)
        assert (np.asarray(result.inputs[name]).reshape(6, 20)[is_hidden] == MASK).all()
        inner = lengths - 2
        expected = np.where(inner > 0, np.maximum(np.round(share * inner), 1), 0)
        np.testing.assert_array_equal(is_hidden.sum(1), expected)
        positions = np.arange(20)
        assert not is_hidden[:, 0].any()
        assert not is_hidden[positions >= lengths[:, None] - 1].any()
    # The two are drawn apart.
    both = [hidden_in(result.inputs[name], tokens) for name in ("tokens", DECODED)]
    assert (both[0] & ~both[1]).any()


def test_labels_are_what_is_hidden_and_weights_add_up_to_the_pairs():
    targets = targets_of()
    result = hide_tokens(targets, CONFIG, jax.random.key(3))
    tokens = np.asarray(targets.inputs["tokens"]).reshape(6, 20)
    labels = np.asarray(result.labels_N).reshape(6, -1)
    weights = np.asarray(result.weights_N).reshape(6, -1)
    num_encoder = result.inputs[HIDDEN].shape[-1]
    for part, name, read in (
        (slice(0, num_encoder), HIDDEN, "tokens"),
        (slice(num_encoder, None), HIDDEN_IN_DECODER, DECODED),
    ):
        positions = np.asarray(result.inputs[name]).reshape(6, -1)
        is_hidden = hidden_in(result.inputs[read], tokens)
        np.testing.assert_array_equal(labels[:, part], np.take_along_axis(tokens, positions, 1))
        # What has a weight is what is hidden, of a pair that counts.
        for text in range(4):
            counted = positions[text][weights[text, part] > 0]
            assert sorted(counted) == np.flatnonzero(is_hidden[text]).tolist()
        # Half of a text's weight each.
        sums = weights[:, part].sum(1)
        np.testing.assert_allclose(sums, [0.25, 0.25, 0.25, 0, 0, 0], atol=1e-6)


def test_a_key_hides_the_same_tokens_and_another_others():
    targets = targets_of()
    first, again, later = (hide_tokens(targets, CONFIG, jax.random.key(seed)) for seed in (3, 3, 4))
    for name in ("tokens", DECODED, HIDDEN):
        np.testing.assert_array_equal(first.inputs[name], again.inputs[name])
        assert not np.array_equal(first.inputs[name], later.inputs[name])
    held_out = [hide_tokens(targets, CONFIG, None).inputs["tokens"] for _ in range(2)]
    np.testing.assert_array_equal(*held_out)


@pytest.mark.parametrize("share", [0.01, 0.9])
def test_any_share_leaves_a_text_something(share):
    config = dataclasses.replace(CONFIG, encoder_masks=share)
    result = hide_tokens(targets_of(), config, jax.random.key(0))
    is_hidden = hidden_in(result.inputs["tokens"], targets_of().inputs["tokens"])
    assert (is_hidden.sum(1) <= np.maximum(LENGTHS.ravel() - 2, 0)).all()
    assert is_hidden[[0, 1, 2, 4, 5]].any(1).all()
