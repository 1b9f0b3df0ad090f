"""A corpus tokenised by matta-prepare, and by `map` of the library datasets, in processes of their
own.

    python experiments/benchmarks/prepare.py --texts='books/train-*.jsonl.gz' --tokenizer=bpe.json

Both use the same tokenizer of the library tokenizers. Ours also checks that each document survives
encode and decode, splits documents, counts near-duplicates, and reads all it wrote once more. Needs
the extras `hub` and `tokenizers`.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import harness

_PEER = """
import sys
import datasets
from tokenizers import Tokenizer

texts, tokenizer, workers, output = sys.argv[1:]
tokenizer = Tokenizer.from_file(tokenizer)
texts = datasets.load_dataset("json", data_files=texts, split="train", cache_dir=output + ".cache")

def encode(rows):
    return {"ids": [each.ids for each in tokenizer.encode_batch(rows["text"])]}

workers = int(workers)
made = texts.map(
    encode,
    batched=True,
    batch_size=16,
    num_proc=workers if workers > 1 else None,
    remove_columns=texts.column_names,
)
made.save_to_disk(output)
"""


def timed(command, environment):
    """Runs a command; returns its seconds, and the CPU-seconds of it and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    os.sched_setaffinity(0, harness.CORES)
    subprocess.run(command, env=os.environ | environment, check=True, **quiet)
    seconds = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu


def ours(texts, tokenizer, workers, output):
    """The command of matta-prepare."""
    config = pathlib.Path(__file__).parents[2] / "configs" / "gpt2_small.py"
    return [
        *(sys.executable, "-m", "matta_jax.bin.prepare", f"--config={config}"),
        *(f"--config.data.source=text:{texts}", f"--config.data.tokenizer=hf:{tokenizer}"),
        *(f"--workers={workers}", f"--output={output}"),
    ]


def peer(texts, tokenizer, workers, output):
    """The command of `map`."""
    return [sys.executable, "-c", _PEER, texts, tokenizer, str(workers), str(output)]


def measure(texts, tokenizer, rounds):
    """Returns a row for each contender and number of processes: the best of its rounds."""
    contenders = {"matta-prepare": ours, "datasets.map": peer}
    best = {}
    num_tokens = 0
    for _ in range(rounds):
        for workers in (1, 2):
            for name, command in contenders.items():
                with tempfile.TemporaryDirectory() as folder:
                    output = pathlib.Path(folder) / "tokens"
                    # Its threads would be more processes than were asked for.
                    environment = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
                    seconds = timed(command(texts, tokenizer, workers, output), environment)
                    if name == "matta-prepare":
                        manifest = json.loads((output / "manifest.json").read_text())
                        sides = manifest["train"], manifest["held_out"]
                        num_tokens = sum(side["tally"]["num_tokens"] for side in sides)
                best[name, workers] = min(best.get((name, workers), seconds), seconds)
    rows = []
    for (name, workers), (seconds, cpu) in sorted(best.items()):
        speed_up = best[name, 1][0] / seconds
        rows.append(
            {
                "contender": name,
                "processes": workers,
                "seconds": seconds,
                "M tokens / s": num_tokens / seconds / 1e6,
                "M tokens / CPU-s": num_tokens / cpu / 1e6,
                "against one process": speed_up,
            }
        )
    return rows


def main():
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", default="runs/benchmarks/prepare.json")
    flags = parser.parse_args()
    rows = measure(flags.texts, flags.tokenizer, flags.rounds)
    harness.print_table(rows)
    harness.write_results(flags.output, {"rows": rows})


if __name__ == "__main__":
    main()
