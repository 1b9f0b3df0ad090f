"""Makes a model of ours from one of elsewhere, to extract from, to grow, or to train on.

matta-import --hf=models/gpt2 --output=models/gpt2_ours
matta-import --gguf=models/smollm2.gguf --output=models/smollm2_ours
matta-import --llama2c=stories.bin --tokenizer=stories.model --output=models/stories
"""

from absl import flags

import matta_jax
from matta_jax.bin import _app
from matta_jax.errors import UserError
from matta_jax.nesting import word_of
from matta_jax.packages import DTYPES, FORMATS, Packaging

_HF = flags.DEFINE_string(
    "hf", None, "Folder with config.json and safetensors, of a ViT timm's too."
)
_GGUF = flags.DEFINE_string("gguf", None, "GGUF file of a GPT-2, Llama, Qwen 2.5 or Qwen 3.")
_LLAMA2C = flags.DEFINE_string("llama2c", None, "File of llama2.c.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the model.")
_TOKENIZER = flags.DEFINE_string(
    "tokenizer",
    None,
    "As data.tokenizer, or a SentencePiece FILE.model; None: the model's own.",
)
_FORMAT = flags.DEFINE_string("format", "orbax", f"{', '.join(FORMATS)}.")
_DTYPE = flags.DEFINE_string("dtype", "fp32", f"{' or '.join(DTYPES)}.")
_MAX_SHARD_GB = _app.define_max_shard_gb(Packaging.max_shard_gb)
_QUANTIZE = _app.define_quantize()
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a model that is there.")


def _main() -> None:
    importers = {
        "hf": (_HF.value, matta_jax.import_hf),
        "gguf": (_GGUF.value, matta_jax.import_gguf),
        "llama2c": (_LLAMA2C.value, matta_jax.import_llama2c),
    }
    named = [name for name, (source, _) in importers.items() if source is not None]
    if len(named) != 1:
        what = " and ".join(f"--{name}" for name in named) or "no source"
        raise UserError(
            f"{what} given: one model is imported; give one of --hf, --gguf and --llama2c, such as "
            "--hf=models/gpt2"
        )
    source, import_model = importers[named[0]]
    assert source is not None, "it is the one that was named"
    package = import_model(
        source,
        _app.required(_OUTPUT, "models/gpt2_ours"),
        tokenizer=_TOKENIZER.value,
        packaging=Packaging(
            _FORMAT.value,
            _DTYPE.value,
            overwrite=_OVERWRITE.value,
            max_shard_gb=_MAX_SHARD_GB.value,
            quantize=_QUANTIZE.value,
        ),
    )
    architecture = package.architecture
    sizes, heads = architecture.sub_model, architecture.family.heads
    _app.say(
        f"{package.path}: {sizes.num_layers} layers, d_model {sizes.largest('d_model')}, "
        f"{sizes.largest(heads)} {word_of(heads)}, d_ff {sizes.largest('d_ff')}, "
        f"{package.counts.parameters:,} parameters"
    )
    _app.say_all(package.manifest.get("notes", ()))


def run() -> None:
    """Console script."""
    _app.run(_main)


if __name__ == "__main__":
    run()
