"""Extracts sub-models of a run as plain models, or writes one again in another format, or verifies
one.

matta-extract --checkpoint=runs/quickstart[@STEP] --sub_model='layers=2;d_ff=256' \\
  --output=models/small
matta-extract --model=models/small --format=hf --output=models/small_hf
matta-extract --checkpoint=runs/quickstart --sub_model=student --as_draft_of=ta --format=hf \\
  --output=models/pair
matta-extract --model=models/small --format=gguf --quantize=q8_0 --output=models/small_gguf
matta-extract --model=models/small --format=gguf --certify=transformers,llama.cpp \\
  --output=models/small_gguf
matta-extract --verify=models/small
"""

from absl import flags

import matta_jax
from matta_jax.bin import _app
from matta_jax.packages import DTYPES, ENGINES, FORMATS, Package, Packaging

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Workdir of a run, with @STEP for another than the newest step."
)
_SUB_MODEL = flags.DEFINE_multi_string(
    "sub_model", None, "student, ta, or AXIS=VALUE;…; several share the start."
)
_MODEL = flags.DEFINE_string(
    "model", None, "Or the folder of an extracted or imported model, to write it again."
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder of the model; of several, the folder that holds them."
)
_FORMAT = flags.DEFINE_string(
    "format",
    "orbax",
    f"{', '.join(FORMATS)}; hf loads in transformers, vllm in vLLM, timm in timm, gguf in "
    "llama.cpp.",
)
_DTYPE = flags.DEFINE_string(
    "dtype", None, f"{' or '.join(DTYPES)}; None: fp32, or that of --model."
)
_MAX_SHARD_GB = _app.define_max_shard_gb(Packaging.max_shard_gb)
_PAD = flags.DEFINE_bool(
    "pad", False, "Pad layers of hf that differ to one size, for stock classes without code."
)
_AS_DRAFT_OF = flags.DEFINE_string(
    "as_draft_of", None, "Write this one too: output/draft is for speculation with output/target."
)
_CERTIFY = flags.DEFINE_list(
    "certify",
    [],
    f"Engines that run the files, to compare with what we compute: {', '.join(ENGINES)}.",
)
_QUANTIZE = _app.define_quantize()
_WITH_OPTIMIZER = flags.DEFINE_bool(
    "with_optimizer", False, "Take the optimiser state along, to train on."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an extracted model that is there.")
_VERIFY = flags.DEFINE_string("verify", None, "Folder of a model to check, tensor by tensor.")


def _main() -> None:
    if _VERIFY.value is not None:
        package = matta_jax.verify(_VERIFY.value)
        _app.say(f"{package.path}: {len(package.stored)} tensors are as they were written")
        if _CERTIFY.value:
            _say_engines(matta_jax.certify(_VERIFY.value, _CERTIFY.value))
        return

    packaging = Packaging(
        _FORMAT.value,
        _dtype(),
        _WITH_OPTIMIZER.value,
        _OVERWRITE.value,
        _MAX_SHARD_GB.value,
        _PAD.value,
        _QUANTIZE.value,
    )
    if _MODEL.value is not None:
        if _AS_DRAFT_OF.value is not None:
            raise matta_jax.UserError(
                f"as_draft_of={_AS_DRAFT_OF.value!r} is of use with --checkpoint alone; name that "
                "in place of --model"
            )
        output = _app.required(_OUTPUT, "models/student_hf")
        package = matta_jax.convert(
            _MODEL.value, output, packaging=packaging, certify=_CERTIFY.value
        )
        spec = package.manifest["spec"]
        _app.say(f"{package.path}: {spec} as {packaging.format}, {packaging.numbers}")
        _app.say_all(package.manifest.get("notes", ()))
        _say_engines(package)
        return

    extracted = matta_jax.extract(
        _app.required(_CHECKPOINT, "runs/quickstart"),
        _app.required(_SUB_MODEL, "student"),
        _app.required(_OUTPUT, "models/student"),
        packaging=packaging,
        as_draft_of=_AS_DRAFT_OF.value,
        certify=_CERTIFY.value,
    )
    for model in extracted:
        # A format may store more than the model has: stock GPT-2 pads, and files have heads.
        _app.say(
            f"{model.path}: {model.spec}, {model.counts.parameters:,} parameters, "
            f"{model.counts.bytes / 1e6:.2f} MB ({model.disk_bytes / 1e6:.2f} MB of files), "
            f"difference to the TA's slice {model.max_difference}"
        )
        _app.say_all(model.notes)
        if _CERTIFY.value:
            _say_engines(matta_jax.open_model(model.path))


def _say_engines(package: Package) -> None:
    """A line for each engine that ran the files."""
    for name, certificate in package.manifest.get("engines", {}).items():
        _app.say(
            f"{package.path}: {name} {certificate['version']} ({certificate['format']}, "
            f"{certificate['numbers']}) counts {certificate['parameters']:,} parameters; its "
            f"log-probabilities differ by {certificate['max_difference']:.3g} at most, "
            f"{certificate['mean_difference']:.3g} on average (limit {certificate['limit']:.3g}, "
            f"{certificate['limit_of']})"
        )


def _dtype() -> str:
    """What is asked for, or that of the model which is written again."""
    if _MODEL.value is None:
        return _DTYPE.value or "fp32"
    # Read in any case: a folder that is none is told before anything is written.
    stored_dtype = matta_jax.open_model(_MODEL.value).manifest["dtype"]
    # Numbers of a quantised file are of float32.
    return _DTYPE.value or ("fp32" if _QUANTIZE.value else stored_dtype)


def run() -> None:
    """Console script."""
    _app.run(_main)


if __name__ == "__main__":
    run()
