"""What mixup and CutMix make of two images."""

import numpy as np
import pytest

from matta_jax.data._blends import blend

BLACK = np.zeros((6, 9, 3), np.uint8)
WHITE = np.full((6, 9, 3), 255, np.uint8)
NOISE = np.random.default_rng(5).integers(0, 256, (2, 6, 9, 3)).astype(np.uint8)


def draws(count, **alphas):
    """The results of so many generators."""
    return [blend(*NOISE, np.random.default_rng(seed), **alphas) for seed in range(count)]


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_is_the_convex_combination_of_its_share_rounded(alpha):
    shares = []
    for pixels, share in draws(200, mixup=alpha, cutmix=0.0):
        assert pixels.dtype == np.uint8 and share.dtype == np.float32 and 0 <= share <= 1
        image, partner = NOISE.astype(float)
        exact = float(share) * image + (1 - float(share)) * partner
        np.testing.assert_array_equal(pixels, np.rint(exact))
        shares.append(share)
    # Of Beta(a, a): a mean of a half, a variance of 1 / (8a + 4).
    assert np.mean(shares) == pytest.approx(0.5, abs=0.1)
    assert np.var(shares) == pytest.approx(1 / (8 * alpha + 4), rel=0.3)


def test_cutmix_is_a_rectangle_whose_area_is_the_partners_share():
    areas = set()
    for seed in range(200):
        pixels, share = blend(WHITE, BLACK, np.random.default_rng(seed), mixup=0.0, cutmix=1.0)
        is_partner = pixels == 0
        assert pixels.dtype == np.uint8 and share.dtype == np.float32
        rows, columns, channels = (is_partner.any(axis) for axis in ((1, 2), (0, 2), (0, 1)))
        rectangle = rows[:, None, None] & columns[None, :, None] & channels
        np.testing.assert_array_equal(is_partner, rectangle)
        for side in (rows, columns):
            assert np.abs(np.diff(side.astype(int))).sum() <= 2
        area = int(rows.sum() * columns.sum())
        assert share == np.float32(1 - area / 54)
        areas.add(area)
    assert len(areas) > 10
    # What is cut comes from its own place in the partner.
    for pixels, _ in draws(20, mixup=0.0, cutmix=1.0):
        assert ((pixels == NOISE[0]) | (pixels == NOISE[1])).all()


def test_a_cut_reaches_each_pixel_and_leaves_images_alone():
    reached = np.zeros((6, 9), bool)
    for seed in range(200):
        reached |= (
            blend(WHITE, BLACK, np.random.default_rng(seed), mixup=0.0, cutmix=1.0)[0][
                ..., 0
            ].astype(int)
            == 0
        )
    assert reached.all() and (WHITE == 255).all() and (BLACK == 0).all()


def test_of_two_alphas_each_has_half_of_the_images():
    are_cut = [
        ((pixels == NOISE[0]) | (pixels == NOISE[1])).all()
        for pixels, _ in draws(300, mixup=1e3, cutmix=1.0)
    ]
    assert np.mean(are_cut) == pytest.approx(0.5, abs=0.1)


def test_the_smallest_alpha_takes_one_of_the_two():
    for pixels, share in draws(20, mixup=1e-9, cutmix=0.0):
        assert share in (0, 1)
        np.testing.assert_array_equal(pixels, NOISE[0 if share else 1])
