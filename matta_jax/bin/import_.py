"""Makes a model of ours from a Hugging Face GPT-2 folder, to extract from, to grow, or to train on.

matta-import --hf=models/gpt2 --output=models/gpt2_ours
"""

from absl import flags

import matta_jax
from matta_jax.bin import _app
from matta_jax.packages import Packaging

_HF = flags.DEFINE_string("hf", None, "Folder with config.json and model.safetensors.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the model.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "As data.tokenizer; None: the folder's own.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a model that is there.")


def _main() -> None:
    package = matta_jax.import_hf(
        _app.required(_HF, "models/gpt2"),
        _app.required(_OUTPUT, "models/gpt2_ours"),
        tokenizer=_TOKENIZER.value,
        packaging=Packaging(overwrite=_OVERWRITE.value),
    )
    sizes = package.architecture.sub_model
    _app.say(
        f"{package.path}: {sizes.num_layers} layers, d_model {sizes.largest('d_model')}, "
        f"{sizes.largest('heads')} heads, d_ff {sizes.largest('d_ff')}, "
        f"{package.counts.parameters:,} parameters"
    )


def run() -> None:
    """Console script."""
    _app.run(_main)


if __name__ == "__main__":
    run()
