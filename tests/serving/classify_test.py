"""Classes of images: batches change nothing, and what is no image is refused."""

import numpy as np
import pytest

import matta_jax
from matta_jax.errors import UserError
from matta_jax.serving import _classify


def test_batches_change_no_class(vit_model, images, monkeypatch):
    model, pixels = matta_jax.load_model(vit_model), np.load(images)["x"]
    logits = matta_jax.classify(model, pixels)
    assert logits.shape == (60, 3) and logits.dtype == np.float32
    monkeypatch.setattr(_classify, "BATCH_SIZE", 7)
    np.testing.assert_allclose(matta_jax.classify(model, pixels), logits, atol=1e-5)
    assert matta_jax.classify(model, pixels[:0]).shape == (0, 3)


def test_what_is_no_image_is_refused(vit_model):
    model = matta_jax.load_model(vit_model)
    with pytest.raises(UserError, match="reads uint8"):
        matta_jax.classify(model, np.zeros((1, 9, 9, 3), np.uint8))
    with pytest.raises(UserError, match="reads uint8"):
        matta_jax.classify(model, np.zeros((1, 8, 8, 3), np.float32))
