"""Tokens per CPU-second of generation with a cache, on the same real weights, against transformers
and llama.cpp (benchmark 21); of several texts at once with `--batch_size=8` (benchmark 23).

    pip install -e '.[gguf,engines-test]'
    python experiments/benchmarks/decode_engines.py --gguf=SmolLM2-135M-Instruct.Q4_1.gguf \\
        --install_peers

A model of a GGUF file, dequantised: ours and transformers run it in float32, llama.cpp a float32
and a Q8_0 file that are written of it here. Prompts of 32 tokens and 64 new ones, greedy, each text
in a slot of its own; a round is all of it. The ids of transformers must be ours; of llama.cpp's it
is told how many are.
"""

import argparse
import pathlib
import tempfile

import harness  # isort: skip  (Pins the process before its children start.)

import contenders as peers
import numpy as np

import matta_jax
from matta_jax.packages import Packaging

SIZES = {"prompt": 32, "new": 64}


def written(source, kind, file):
    """Writes the model of a GGUF file again, its matrices as `kind`."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(file, reader.fields["general.architecture"].contents())
    for name, entry in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        if entry.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(name, entry.contents())
        else:
            writer.add_key_value(name, entry.contents(), entry.types[0])

    quantised = gguf.GGMLQuantizationType[kind]
    for tensor in reader.tensors:
        weight = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        weight = weight.reshape([int(size) for size in reversed(tensor.shape)])
        if weight.ndim == 1 or kind == "F32":
            writer.add_tensor(tensor.name, weight)
        else:
            writer.add_tensor(tensor.name, gguf.quantize(weight, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(file)


def start(source, folder, flags):
    """The contenders by name, ours first."""
    packaging = Packaging("hf")
    package = matta_jax.import_gguf(source, folder / "hf", packaging=packaging)
    sizes = SIZES | {"vocab_size": package.architecture.vocab_size, "max_len": 128}
    sizes["batch_size"] = flags.batch_size
    model = str(package.path)

    running = {"ours": peers.Contender(peers.PYTHON, "ours_model.py", sizes, model)}
    if python := peers.environment("torch", peers.TORCH, install=flags.install_peers):
        running["transformers"] = peers.Contender(python, "hf_model.py", sizes, model)
    for kind in ("F32", "Q8_0"):
        file = written(source, kind, folder / f"{kind}.gguf")
        running[f"llama.cpp, {kind}"] = peers.Contender(
            peers.PYTHON, "llama_cpp_model.py", sizes, file
        )
    return running


def rows_of(steps_of):
    """One row for each contender."""
    rows = []
    ids = np.array(steps_of["ours"][0]["ids"])
    for name, steps in steps_of.items():
        counted = steps[peers.WARM_UP :]
        seconds, spread = harness.median_and_spread([step["seconds"] for step in counted])
        same = int((ids == np.array(steps[0]["ids"])).sum())
        row = {
            "engine": name,
            "tokens / CPU-s": ids.size / seconds,
            "spread": spread,
            "peak RSS, MB": max(step["peak_mb"] for step in counted),
            "ids as ours": f"{same} of {ids.size}",
        }
        ours = rows[0] if rows else row
        row["speed / ours"] = row["tokens / CPU-s"] / ours["tokens / CPU-s"]
        rows.append(row)
    return rows


def main():
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gguf", required=True, help="file of a Llama, Qwen 2.5 or Qwen 3")
    parser.add_argument("--batch_size", type=int, default=1, help="texts at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--install_peers", action="store_true", help="make their environments")
    parser.add_argument("--output", default="runs/benchmarks/decode_engines.json")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        running = start(flags.gguf, pathlib.Path(folder), flags)
        steps_of = peers.take_turns(running, rounds=flags.rounds)
        for contender in running.values():
            contender.close()

    ids = steps_of["ours"][0]["ids"]
    if "transformers" in steps_of and steps_of["transformers"][0]["ids"] != ids:
        raise RuntimeError("transformers generates other ids")
    rows = rows_of(steps_of)
    harness.print_table(rows)
    harness.write_results(flags.output, {"rows": rows})


if __name__ == "__main__":
    main()
