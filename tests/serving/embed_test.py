"""Vectors of texts, in the order of the texts."""

import jax
import numpy as np
import pytest

import matta_jax
from matta_jax import models, packages
from matta_jax.errors import UserError
from matta_jax.serving import _embed


@pytest.fixture
def model(embedder):
    """The TA of a run that has not begun."""
    config = embedder()
    plan = models.plan_of(config)
    params = models.init_params(plan.architecture, jax.random.key(0), plan.nest)
    counts = plan.count(plan.nest.ta)
    return packages.Model("ta", config, counts, params, {}, plan.architecture)


@pytest.mark.slow
def test_batches_and_lengths_change_no_vector(model, monkeypatch):
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abc "), rng.integers(0, 40))) for _ in range(9)]
    vectors = matta_jax.embed(model, texts)
    assert vectors.shape == (9, 16) and vectors.dtype == np.float32
    monkeypatch.setattr(_embed, "_BATCH_SIZE", 4)
    np.testing.assert_allclose(matta_jax.embed(model, texts), vectors, atol=1e-6)
    for text, vector in zip(texts, vectors, strict=True):
        np.testing.assert_allclose(matta_jax.embed(model, [text])[0], vector, atol=1e-6)
    assert matta_jax.embed(model, []).shape == (0, 16)


def test_a_language_model_gives_no_vectors(run):
    [model] = packages.load_in_place(str(run[1]), ["student"])
    with pytest.raises(UserError, match="is a language model, and gives no vectors"):
        matta_jax.embed(model, ["a"])
