"""Milliseconds of llama.cpp on models of mixed widths, of one width with as many parameters, and
padded to the widest.

    pip install -e '.[llama-cpp]'
    python experiments/benchmarks/mixed_widths.py

A Llama of 8 layers, d_model 512, of random weights, in GGUF files: a prompt of 256 ids and 16 more
tokens, on one thread, as the server's own clock has them. Models take turns.
"""

import argparse
import pathlib
import tempfile

import harness  # isort: skip  (Pins the process before its children start.)

import numpy as np

from matta_jax import config as c
from matta_jax import models, nesting, packages, storage
from matta_jax.packages import Packaging

# Of as many parameters, but for the last two. A model that is padded to its widest layer costs what
# the TA does.
SPECS = {
    "one width": "d_ff=1024",
    "narrow, then wide": "d_ff=512*4,1536*4",
    "narrow and wide in turn": "d_ff=512,1536,512,1536,512,1536,512,1536",
    "a few widest": "d_ff=512*5,2048*2,1536",
    "padded to 2048, as the TA": "ta",
    "Student": "student",
}
NUM_TOKENS = 16


def config():
    """A nest of a Llama of 8 layers."""
    sizes = {"num_layers": 8, "d_model": 512, "num_heads": 8, "num_kv_heads": 4, "d_ff": 512}
    return c.Config(
        model=c.LlamaConfig(vocab_size=256, max_len=512, **sizes),
        nest=c.NestConfig(d_ff=2048, widths=(512, 1024, 1536, 2048)),
        data=c.DataConfig(seq_len=256),
    )


def written(plan, spec, quantize, folder):
    """Writes a sub-model of random weights; returns its file and its parameters."""
    architecture = plan.architecture_of(nesting.parse_spec(spec, plan.nest))
    rng = np.random.default_rng(0)
    weights = {}
    for path, leaf in nesting.flatten(models.abstract_params(architecture)).items():
        weights[path] = 0.02 * rng.normal(size=leaf.shape).astype(np.float32)
        weights[path] += path.endswith("scale")
    about = {"parent": {"hf": "none"}, "spec": spec, "config": c.to_dict(config()), "scores": []}
    with storage.new_folder(folder, last="manifest.json") as building:
        packages.write_package(
            building,
            packages.in_memory(nesting.unflatten(weights)),
            architecture,
            Packaging("gguf", quantize=quantize),
            about,
            text_ids=None,
        )
    return folder / "model.gguf", packages.open_model(folder).counts.parameters


def server_of(file):
    """A server of llama.cpp on one thread."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx, settings.n_parallel = 512, 1
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(settings)


def main():
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--output", default="runs/benchmarks/mixed_widths.json")
    flags = parser.parse_args()

    plan = models.plan_of(config())
    request = {
        "prompt": np.random.default_rng(0).integers(40, 120, 256).tolist(),
        "max_tokens": NUM_TOKENS + 1,
        "temperature": 0,
        "cache_prompt": False,
        # A letter each time: none ends the text.
        "logit_bias": [[ord("a"), 1000]],
    }
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for quantize in ("f16", "q8_0"):
            for name, spec in SPECS.items():
                folder = storage.path(pathlib.Path(scratch) / f"{len(rows)}")
                file, parameters = written(plan, spec, quantize, folder)
                row = {"model": name, "spec": spec, "type": quantize, "parameters": parameters}
                rows.append(row | {"server": server_of(file), "prefill": [], "token": []})
        for _ in range(flags.rounds):
            for row in rows:
                timings = row["server"].handle_completions(request)["timings"]
                row["prefill"].append(timings["prompt_ms"])
                # The first comes with the prompt.
                row["token"].append(timings["predicted_ms"] / (timings["predicted_n"] - 1))
        for row in rows:
            row.pop("server")

    table = []
    for row in rows:
        line = {name: row[name] for name in ("model", "spec", "type", "parameters")}
        for name in ("prefill", "token"):
            median, spread = harness.median_and_spread(row[name])
            line[f"{name}, ms"] = f"{median:.3g} ({spread:.0%})"
        table.append(line)
    harness.print_table(table)
    harness.write_results(flags.output, {"rounds": flags.rounds, "rows": rows})


if __name__ == "__main__":
    main()
