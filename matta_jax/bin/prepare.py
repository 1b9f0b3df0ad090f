"""Tokenises the corpus of a config once, on all cores, into files that runs read.

matta-prepare --config=configs/gpt2_small.py --config.data.source='parquet:gs://my-bucket/c4/*' \\
  --output=gs://my-bucket/c4_gpt2
matta-train --config=configs/gpt2_small.py --workdir=gs://my-bucket/runs/a \\
  --config.data.source=prepared:gs://my-bucket/c4_gpt2

Stopped at any point, the same command goes on. For a corpus beyond one machine, name a runner of
Apache Beam, and its options: --runner=dataflow --beam_options=--project=P,--region=R.
"""

import time

from absl import flags

import matta_jax
from matta_jax.bin import _app
from matta_jax.data import RUNNERS, Preparation, Runner

_CONFIG = _app.define_config()
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the tokens. Begun before, it goes on.")
_WORKERS = flags.DEFINE_integer("workers", None, "Processes; by default one for each core.")
_RUNNER = flags.DEFINE_string(
    "runner", "local", f"Who tokenises: {', '.join(RUNNERS)}; all but the first by Apache Beam."
)
_BEAM_OPTIONS = flags.DEFINE_list("beam_options", [], "Options of Beam, with commas between.")
_OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Replace another preparation in --output.")


def _main() -> None:
    config = _app.checked_config(_CONFIG)
    output = _app.required(_OUTPUT, "prepared/c4")
    runner = Runner(_RUNNER.value, _WORKERS.value, tuple(_BEAM_OPTIONS.value))
    start = time.monotonic()
    prepared = matta_jax.prepare(
        config, output, runner=runner, overwrite=_OVERWRITE.value, log=_app.say
    )
    _tell(prepared, time.monotonic() - start)


def _tell(prepared: Preparation, seconds: float) -> None:
    manifest = prepared.manifest
    for name, side in (("training", manifest.train), ("held out", manifest.held_out)):
        tally = side.tally
        _app.say(
            f"{name}: {tally.num_tokens:,} tokens of {tally.num_documents:,} documents, "
            f"{tally.num_bytes:,} bytes"
        )
        if tally.num_lossy:
            _app.say(
                f"{tally.num_lossy:,} of them do not survive encode and decode (the first: "
                f"{tally.first_lossy!r}): bits per byte counts what the tokenizer keeps"
            )
    _app.say(
        f"{manifest.near_duplicates:,} of the held-out documents stand in the training side too"
    )
    num_tokens = manifest.train.tally.num_tokens + manifest.held_out.tally.num_tokens
    done_before = prepared.num_parts - prepared.num_written
    before = f", {done_before} of {prepared.num_parts} parts before" if done_before else ""
    rate = f", {num_tokens / seconds:,.0f} tokens a second" if not done_before else ""
    _app.say(f"{prepared.folder}: prepared in {seconds:.1f} s{rate}{before}")
    _app.say(f"train on it with --config.data.source=prepared:{prepared.folder}")


def run() -> None:
    """Console script."""
    _app.run(_main)


if __name__ == "__main__":
    run()
