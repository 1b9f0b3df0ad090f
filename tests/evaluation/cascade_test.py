"""Thresholds of a cascade: what is measured of each, and which one is chosen."""

import json

import numpy as np
import pytest

import matta_jax
from matta_jax import packages
from matta_jax.errors import UserError
from matta_jax.evaluation import _cascade


@pytest.fixture(scope="module")
def pair(vit_model):
    return packages.load_in_place(str(vit_model.parent), ["student", "ta"])


@pytest.mark.slow
def test_the_report_has_each_threshold_and_its_ends_are_the_models(pair, images, tmp_path):
    where = str(images)
    result = matta_jax.cascade_report(*pair, tune=where, test=where, output=tmp_path / "out")
    first, last = result.points[0], result.points[-1]
    assert first.stopped == 1 and last.stopped == 0 and len(result.points) == 11
    small, large = (
        matta_jax.evaluate(
            checkpoint=str(pair[0].origin["checkpoint"]), sub_model=spec, tasks=f"accuracy:{where}"
        ).scores[f"accuracy:{where}"]
        for spec in ("student", "ta")
    )
    assert (first.accuracy, last.accuracy) == (small, large)
    macs = [model.counts.flops_per_token * 5 / 2 for model in pair]
    assert (first.macs, last.macs) == (macs[0], sum(macs))
    assert all(point.ms > 0 for point in result.points)
    stored = json.loads((tmp_path / "out" / "cascade.json").read_text())
    assert stored["pick"]["threshold"] == result.pick.threshold
    assert result.table in (tmp_path / "out" / "cascade.md").read_text()


def test_the_largest_threshold_that_loses_little_is_chosen():
    entropies = np.array([0.1, 0.2, 0.3, 0.4])
    small, large = np.array([1, 1, 0, 0]) == 1, np.array([1, 1, 1, 0]) == 1
    thresholds = [0.4, 0.3, 0.2, 0.1, 0.0]
    assert _cascade._chosen(thresholds, entropies, [small, large], 0.0) == 0.2
    assert _cascade._chosen(thresholds, entropies, [small, large], 0.25) == 0.4
    # Where the small model is right and the large one is not, more may stop.
    assert _cascade._chosen(thresholds, entropies, [large, small], 0.0) == 0.4


@pytest.mark.parametrize("max_loss", [-0.1, 1.0, float("nan")])
def test_what_may_be_lost_is_a_share(pair, images, tmp_path, max_loss):
    with pytest.raises(UserError, match="must be a share from 0 to 1"):
        matta_jax.cascade_report(
            *pair, tune=str(images), test=str(images), output=tmp_path / "o", max_loss=max_loss
        )
    assert not list(tmp_path.iterdir())


def test_images_that_cannot_be_read_are_named_by_their_flag(pair, images, tmp_path):
    with pytest.raises(UserError, match="test='nothere.npz': data source"):
        matta_jax.cascade_report(*pair, tune=str(images), test="nothere.npz", output=tmp_path / "o")
