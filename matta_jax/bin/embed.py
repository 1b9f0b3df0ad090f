"""Writes the vectors of texts, a line each. Without --mesh flags all accelerators split texts; CPUs
are one device.

matta-embed --model=models/minilm --input=texts.txt --output=vectors.npy
matta-embed --checkpoint=runs/minilm --sub_model='layers=2;embed=64' --input=t.txt --output=v.npy
matta-embed --model=models/large --input=texts.txt --output=vectors.npy --mesh.fsdp=8
"""

import numpy as np
from absl import flags

import matta_jax
from matta_jax import storage
from matta_jax.bin import _app, _mesh
from matta_jax.data import read_text
from matta_jax.errors import UserError
from matta_jax.packages import check_place, load_chosen

_MODEL = flags.DEFINE_string("model", None, "Folder of an extracted or imported embedder.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Or the workdir of a run, with sub_model.")
_SUB_MODEL = flags.DEFINE_string("sub_model", None, "Which sub-model of the checkpoint embeds.")
_INPUT = flags.DEFINE_string("input", None, "File of texts, one a line; .gz too.")
_OUTPUT = flags.DEFINE_string("output", None, "NumPy file of the vectors, one a line.")


def _main() -> None:
    source = _app.required(_INPUT, "texts.txt")
    output = check_place("output", _app.required(_OUTPUT, "vectors.npy"))
    if output.suffix != ".npy":
        raise UserError(f"output={str(output)!r} must end in .npy; rename it")
    models = [_MODEL.value] if _MODEL.value else []
    sub_models = [_SUB_MODEL.value] if _SUB_MODEL.value else []
    lines = read_text(storage.path(source), f"input={source!r}").split("\n")
    texts = lines[:-1] if lines[-1] == "" else lines
    [model] = load_chosen(models, _CHECKPOINT.value, sub_models, mesh=_mesh.of_rows())

    vectors = matta_jax.embed(model, texts)
    with (
        storage.writing("output", output, "name another"),
        storage.new_file(output) as building,
        storage.open_new(building) as file,
    ):
        np.save(file, vectors)
    _app.say(f"{output}: {len(vectors)} vectors of {vectors.shape[1]} numbers")


def run() -> None:
    """Console script."""
    _app.run(_main)


if __name__ == "__main__":
    run()
