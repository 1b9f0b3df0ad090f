"""Writes the classes of images, a line each. Without --mesh flags all accelerators split images;
CPUs are one device.

matta-classify --model=models/vit --input=images.npz --output=classes.jsonl
matta-classify --checkpoint=runs/vit --sub_model=student --input=photos/ --output=classes.jsonl
matta-classify --model=models/client3 --input=images.npz --output=classes.jsonl
"""

import functools
from collections.abc import Callable

import numpy as np
import scipy.special
from absl import flags

import matta_jax
from matta_jax import federated, storage
from matta_jax.bin import _app, _mesh
from matta_jax.config import VitConfig
from matta_jax.data import read_unlabelled
from matta_jax.errors import UserError
from matta_jax.packages import check_place, load_chosen
from matta_jax.serving import image_section

_MODEL = flags.DEFINE_string(
    "model", None, "Folder of an extracted or imported classifier, or of a federated client's."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Or the workdir of a run, with sub_model.")
_SUB_MODEL = flags.DEFINE_string("sub_model", None, "Which sub-model of the checkpoint classifies.")
_INPUT = flags.DEFINE_string(
    "input", None, "An .npz with x, images as of data.source; or a folder of PNG and JPEG files."
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "JSON lines: the name of an image, its class, and the probabilities of all."
)


def _main() -> None:
    source = _app.required(_INPUT, "images.npz")
    output = check_place("output", _app.required(_OUTPUT, "classes.jsonl"))
    if output.suffix != ".jsonl":
        raise UserError(f"output={str(output)!r} must end in .jsonl; rename it")
    section, classify = _classifier()

    names, images = read_unlabelled(source, section, f"input={source!r}")
    logits = classify(images)
    probabilities = scipy.special.softmax(logits.astype(np.float64), axis=1)
    lines = []
    for name, row in zip(names, probabilities, strict=True):
        values = [round(float(p), 6) for p in row]
        line = {"image": name, "class": int(row.argmax()), "probabilities": values}
        lines.append(storage.json_text(line) + "\n")
    with storage.writing("output", output, "name another"):
        storage.replace_text(output, "".join(lines))
    _app.say(f"{output}: classes of {len(lines)} images")


def _classifier() -> tuple[VitConfig, Callable[[np.ndarray], np.ndarray]]:
    """What images must be, and what makes logits of them."""
    if _MODEL.value and _CHECKPOINT.value is None and federated.is_client(_MODEL.value):
        client = federated.load_client(_MODEL.value)
        return client.classifier_section, client.logits

    models = [_MODEL.value] if _MODEL.value else []
    sub_models = [_SUB_MODEL.value] if _SUB_MODEL.value else []
    [model] = load_chosen(models, _CHECKPOINT.value, sub_models, mesh=_mesh.of_rows())
    return image_section(model), functools.partial(matta_jax.classify, model)


def run() -> None:
    """Console script."""
    _app.run(_main)


if __name__ == "__main__":
    run()
