"""Two images in one: mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899)."""

import numpy as np


def blend(
    image_HWC: np.ndarray,
    partner_HWC: np.ndarray,
    rng: np.random.Generator,
    *,
    mixup: float,
    cutmix: float,
) -> tuple[np.ndarray, np.float32]:
    """Mixes an image with another by one of the two; where both have an alpha, by either in half of
    all calls.

    Args:
      image_HWC: uint8 [H, W, C].
      partner_HWC: likewise.
      rng: of what is drawn.
      mixup: a of Beta(a, a), of which the share is drawn that the image has in each pixel; 0: none.
      cutmix: the same of the share of its pixels that a rectangle of the partner leaves; 0: none.

    Returns:
      The pixels, uint8 [H, W, C], and the share of the image in them.
    """
    is_cut = cutmix > 0 and (mixup == 0 or rng.random() < 0.5)
    alpha = cutmix if is_cut else mixup
    share = np.float32(rng.beta(alpha, alpha))
    if is_cut:
        return _cut(image_HWC, partner_HWC, share, rng)
    weight = np.float64(share)
    blended = np.rint(weight * image_HWC + (1 - weight) * partner_HWC)
    return blended.astype(np.uint8), share


def _cut(
    image_HWC: np.ndarray, partner_HWC: np.ndarray, share: np.float32, rng: np.random.Generator
) -> tuple[np.ndarray, np.float32]:
    """The image with a rectangle of the partner in it, anywhere; what stands out is cut off."""
    shape = np.array(image_HWC.shape[:2])
    half = (shape * np.sqrt(1 - np.float64(share))).astype(int) // 2
    centre = rng.integers(0, shape)
    top, first_column = np.maximum(centre - half, 0)
    bottom, last_column = np.minimum(centre + half, shape)
    pixels = image_HWC.copy()
    place = (slice(top, bottom), slice(first_column, last_column))
    pixels[place] = partner_HWC[place]

    # The label follows what is seen, not what was drawn.
    area = int(bottom - top) * int(last_column - first_column)
    return pixels, np.float32(1 - area / shape.prod())
