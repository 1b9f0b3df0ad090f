"""Accuracy of image classifiers, against its definition."""

import numpy as np
import pytest

import matta_jax
from matta_jax.errors import UserError


def test_accuracy_is_the_share_of_right_classes(vit_model, images):
    compared = matta_jax.compare(
        models=[vit_model], tasks=[f"accuracy:{images}", "accuracy:held_out"]
    )
    arrays = np.load(images)
    logits = matta_jax.classify(matta_jax.load_model(vit_model), arrays["x"])
    scores = compared.evaluations[0].scores
    right = logits.argmax(axis=1) == arrays["y"]
    assert scores[f"accuracy:{images}"] == pytest.approx(right.mean())
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -log_p[np.arange(60), arrays["y"]].mean()
    assert scores[f"log_loss:{images}"] == pytest.approx(expected, rel=1e-5)
    baseline = compared.baselines[f"accuracy:{images}"]["most frequent class"]
    assert baseline == np.bincount(arrays["y"]).max() / 60
    assert compared.evaluations[0].examples["accuracy:held_out"] < 60


def test_accuracy_is_of_image_classifiers(run, images):
    with pytest.raises(UserError, match="is for image classifiers; this model is a language model"):
        matta_jax.compare(checkpoint=str(run[1]), sub_models=["ta"], tasks=[f"accuracy:{images}"])
