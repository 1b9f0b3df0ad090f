"""Finds the best sub-model of a run within a budget. Without --mesh flags all accelerators split
rows; CPUs are one device.

matta-search --checkpoint=runs/quickstart --max_params=600e3 --output=runs/quickstart/search \\
  --extract_best=1
matta-search --checkpoint=runs/quickstart --max_file_mb=0.3 --quantize=q8_0,q4_0 --format=gguf \\
  --output=runs/quickstart/files --extract_best=1
matta-search --checkpoint=runs/big --max_mb=300 --max_ms=5 --latency_mode=decode --output=search
matta-search --checkpoint=runs/llama --max_ms=5 --latency_engine=llama.cpp --quantize=q8_0 \\
  --format=gguf --output=search
"""

from absl import flags

import matta_jax
from matta_jax.bin import _app, _mesh
from matta_jax.errors import UserError
from matta_jax.packages import DTYPES, FORMATS, QUANTIZATIONS, Packaging
from matta_jax.selection import JAX, LATENCY_ENGINES, METHODS, Budget, Workload, length_of_run

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Workdir of a run, with @STEP for another than the newest step."
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder of the table, the plot, the scores and the models."
)
_MAX_PARAMS = flags.DEFINE_float("max_params", None, "Most parameters.")
_MAX_MB = flags.DEFINE_float("max_mb", None, "Most megabytes of weights, at --dtype.")
_MAX_FLOPS = flags.DEFINE_float(
    "max_flops_per_token", None, "Most FLOPs of a token's forward pass."
)
_MAX_MS = flags.DEFINE_float(
    "max_ms", None, "Most milliseconds on this machine, of what the latency flags say."
)
_MAX_VECTOR_BYTES = flags.DEFINE_float(
    "max_vector_bytes", None, "Most bytes of an embedder's vector, at --dtype."
)
_MAX_FILE_MB = flags.DEFINE_float(
    "max_file_mb", None, "Most megabytes of the file of --format=gguf, all of it."
)
_LATENCY_ENGINE = flags.DEFINE_string(
    "latency_engine",
    None,
    f"{' or '.join(LATENCY_ENGINES)}: by which models are timed; None: jax.",
)
_LATENCY_THREADS = flags.DEFINE_integer(
    "latency_threads", None, "Threads of another engine than jax; None: one."
)
_LATENCY_MODE = flags.DEFINE_string(
    "latency_mode", None, "prefill (default), or decode: one token, with a cache."
)
_LATENCY_BATCH = flags.DEFINE_integer(
    "latency_batch_size", None, "Sequences that are timed at once; None: one."
)
_LATENCY_LENGTH = flags.DEFINE_integer("latency_length", None, "Their length; None: the run's.")
_DTYPE = flags.DEFINE_string(
    "dtype", "fp32", f"{' or '.join(DTYPES)}: of max_mb, and of what is extracted."
)
_CORPUS = flags.DEFINE_string(
    "corpus",
    "held_out",
    "Glob of text files, a classifier's images (FILE.npz or a folder), or the run's own held_out.",
)
_LAYERS = flags.DEFINE_integer("layers", None, "Fix the depth.")
_D_MODEL = flags.DEFINE_integer("d_model", None, "Fix d_model.")
_NUM_HEADS = flags.DEFINE_integer("num_heads", None, "Fix the number of heads.")
_NUM_KV_HEADS = flags.DEFINE_integer(
    "num_kv_heads", None, "Fix the number of heads of keys and values."
)
_EMBED = flags.DEFINE_integer("embed", None, "Fix the numbers of an embedder's vectors.")
_METHOD = flags.DEFINE_string("method", "auto", f"{', '.join(METHODS)}.")
_NUM_WINDOWS = flags.DEFINE_integer(
    "num_windows", 256, "Windows of the corpus that rank the candidates."
)
_VERIFY = flags.DEFINE_integer("verify", 4, "Candidates to verify on the whole corpus.")
_EVALUATIONS = flags.DEFINE_integer(
    "evaluations", 128, "Models that the evolutionary method scores."
)
_COMPUTE_DTYPE = _app.define_compute_dtype("activations and matmuls while models are scored")
_EXTRACT_BEST = flags.DEFINE_integer("extract_best", 0, "How many models to write, best first.")
_FORMAT = flags.DEFINE_string("format", "orbax", f"Of what is extracted: {', '.join(FORMATS)}.")
_QUANTIZE = flags.DEFINE_list(
    "quantize",
    [],
    f"Types of gguf files among which each model chooses: {', '.join(QUANTIZATIONS)}.",
)
_MAX_SHARD_GB = _app.define_max_shard_gb(Packaging.max_shard_gb)


def _main() -> None:
    checkpoint = _app.required(_CHECKPOINT, "runs/quickstart")
    workload = _workload(checkpoint)
    output = _app.required(_OUTPUT, "search")
    budget = Budget(
        _MAX_PARAMS.value,
        _MAX_MB.value,
        _MAX_FLOPS.value,
        _MAX_MS.value,
        _DTYPE.value,
        _MAX_VECTOR_BYTES.value,
        _MAX_FILE_MB.value,
    )
    result = matta_jax.search(
        checkpoint,
        output,
        budget=budget,
        corpus=_CORPUS.value,
        layers=_LAYERS.value,
        d_model=_D_MODEL.value,
        num_heads=_NUM_HEADS.value,
        num_kv_heads=_NUM_KV_HEADS.value,
        embed=_EMBED.value,
        method=_METHOD.value,
        num_windows=_NUM_WINDOWS.value,
        verify=_VERIFY.value,
        evaluations=_EVALUATIONS.value,
        workload=workload,
        extract_best=_EXTRACT_BEST.value,
        packaging=Packaging(
            _FORMAT.value,
            _DTYPE.value,
            max_shard_gb=_MAX_SHARD_GB.value,
        ),
        quantize=_QUANTIZE.value,
        mesh=_mesh.chosen(),
        compute_dtype=_COMPUTE_DTYPE.value,
        log=_app.say,
    )

    _app.say(result.table)
    for note in result.notes:
        _app.say(note)
    for model in result.extracted:
        _app.say(f"extracted {model.spec} to {model.path}")
        _app.say_all(model.notes)
    numbers = "" if result.pick.numbers is None else f" in {result.pick.numbers}"
    _app.say(f"pick: {result.pick.spec}{numbers}")


def _workload(checkpoint: str) -> Workload | None:
    """What is timed; None where no flag speaks of latency.

    Raises:
      UserError: how many are timed, and not what; or a number out of bounds.
    """
    mode, length, engine = _LATENCY_MODE.value, _LATENCY_LENGTH.value, _LATENCY_ENGINE.value
    batch_size, threads = _LATENCY_BATCH.value, _LATENCY_THREADS.value
    if all(value is None for value in (_MAX_MS.value, mode, length, engine)):
        for name, value in {"batch_size": batch_size, "threads": threads}.items():
            if value is not None:
                raise UserError(
                    f"latency_{name}={value} is of no use alone: nothing is timed; give --max_ms "
                    "to limit the time, or --latency_mode to see it"
                )
        return None
    # By None: a 0 or an empty name is a mistake to be told, and no default.
    engine = JAX if engine is None else engine
    if length is None:
        length = length_of_run(matta_jax.open_source(checkpoint).config, engine)
    return Workload(
        "prefill" if mode is None else mode,
        1 if batch_size is None else batch_size,
        length,
        engine=engine,
        threads=threads,
    )


def run() -> None:
    """Console script."""
    _app.run(_main)


if __name__ == "__main__":
    run()
