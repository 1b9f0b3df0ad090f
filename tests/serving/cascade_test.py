"""Cascades: who answers, that what stops really stops, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest

import matta_jax
from matta_jax import packages, serving
from matta_jax.errors import UserError


@pytest.fixture(scope="module")
def pair(vit_model):
    return packages.load_in_place(str(vit_model.parent), ["student", "ta"])


@pytest.mark.slow
def test_each_image_is_answered_by_the_model_that_its_entropy_chooses(pair, images):
    pixels = np.load(images)["x"]
    small, large = (matta_jax.classify(model, pixels) for model in pair)
    uncertain = serving.entropies(small)
    expected = -(np.exp(small) / np.exp(small).sum(1, keepdims=True))
    expected = (expected * np.log(-expected)).sum(1)
    np.testing.assert_allclose(uncertain, expected, rtol=1e-5)
    threshold = float(np.median(uncertain))
    answers = serving.Cascade(*pair)(pixels, threshold)
    stopped = uncertain <= threshold
    assert 0 < stopped.sum() < len(stopped)
    np.testing.assert_array_equal(answers.stopped, stopped)
    logits = np.where(stopped[:, None], small, large)
    np.testing.assert_allclose(answers.logits, logits, atol=1e-5)


def test_the_ends_are_the_models_themselves(pair, images):
    pixels = np.load(images)["x"]
    cascade = serving.Cascade(*pair)
    for threshold, model in ((0.0, pair[1]), (10.0, pair[0])):
        answers = cascade(pixels, threshold)
        np.testing.assert_allclose(answers.logits, matta_jax.classify(model, pixels), atol=1e-5)
    assert answers.stopped.all()


@pytest.mark.slow
def test_only_unsure_images_reach_the_large_model(pair, images, monkeypatch):
    pixels = np.load(images)["x"]
    cascade = serving.Cascade(*pair)
    # Compiled when it was made: one batch of the small model, four sizes of the large one's.
    assert [cascade._first._cache_size(), cascade._second._cache_size()] == [1, 4]
    sizes = []
    first, second = cascade._first, cascade._second

    def run_first(params, inputs):
        sizes.append((0, len(inputs["image"])))
        return first(params, inputs)

    def run_second(params, batch, ended_ND, rows):
        sizes.append((1, len(rows)))
        return second(params, batch, ended_ND, rows)

    monkeypatch.setattr(cascade, "_first", run_first)
    monkeypatch.setattr(cascade, "_second", run_second)
    unsure = np.sort(serving.entropies(matta_jax.classify(pair[0], pixels)))
    # Five of sixty: a batch of eight is the smallest that holds them.
    cascade(pixels, float((unsure[-6] + unsure[-5]) / 2))
    assert sizes == [(0, 64), (1, 8)]
    sizes.clear()
    cascade(pixels, 10.0)
    assert sizes == [(0, 64)]


@pytest.mark.slow
def test_a_model_that_thinks_twice_goes_on_from_its_first_thought(vit, images, tmp_path):
    thinking = vit(model__thinking_heads=[2], nest__thoughts=1)
    matta_jax.train(thinking, tmp_path / "run", log=lambda _: None)
    small, large = packages.load_in_place(str(tmp_path / "run"), ["student", "ta"])
    cascade = serving.Cascade(small, large)
    assert cascade.goes_on
    pixels = np.load(images)["x"]
    answers = cascade(pixels, 0.0)
    np.testing.assert_allclose(answers.logits, matta_jax.classify(large, pixels), atol=1e-5)
    # Together they cost what the large model does, but for the small one's logits.
    logits_flops = 2 * 16 * 3
    assert sum(cascade.flops_per_token) == large.counts.flops_per_token + logits_flops

    # Another Student than its own is no thought of it.
    other = dataclasses.replace(small, params=jax.tree.map(lambda leaf: leaf * 1.01, small.params))
    assert not serving.Cascade(other, large).goes_on


def test_what_is_no_cascade_is_refused(pair, run, images):
    pixels = np.load(images)["x"]
    for threshold in (-0.1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="must be an entropy in nats, at least 0"):
            serving.Cascade(*pair)(pixels, threshold)
    [text] = packages.load_in_place(str(run[1]), ["student"])
    with pytest.raises(UserError, match="is a language model, and reads no images"):
        serving.Cascade(pair[0], text)
    section = dataclasses.replace(pair[1].config.model, image_size=12)
    config = dataclasses.replace(pair[1].config, model=section)
    with pytest.raises(UserError, match="a cascade needs the same"):
        serving.Cascade(pair[0], dataclasses.replace(pair[1], config=config))
