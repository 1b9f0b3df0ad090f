"""What is compared: the runs, and the models that are taken out of them."""

from lab.laptop import ALONE, TA_ALONE

from matta_jax.sweeps import Overrides

NESTS: dict[str, Overrides] = {"two points": {}, "with a mix": {"nest.mix_per_step": 1}}
TRAINED_ALONE: dict[str, Overrides] = {
    "alone 128": ALONE,
    "alone 512": {**ALONE, "model.d_ff": 512},
    "alone 1024": TA_ALONE,
}
WIDTHS = (128, 512, 1024)
"""Of the models that are trained alone."""
UNIFORM = {f"d_ff={width}": width for width in (128, 256, 512, 1024)}
WIDE_OUTSIDE, WIDE_INSIDE = "d_ff=wide-narrow-wide:2", "d_ff=narrow-wide-narrow:2"
SEARCHED = "search"
