"""The model card: what a folder holds, where it came from, how good it is and how to load it."""

import pathlib
import shutil
from typing import Any

_LOAD = {
    "hf": """```python
from transformers import GPT2LMHeadModel
model = GPT2LMHeadModel.from_pretrained("THIS_FOLDER")
```""",
    "safetensors": """```python
import safetensors.numpy  # Names and axes: manifest.json
weights = safetensors.numpy.load_file("THIS_FOLDER/model.safetensors")
```""",
    "orbax": "",
}
_OURS = """```python
import matta_jax

model = matta_jax.load_model("THIS_FOLDER")
logits = model.logits(model.params, tokens)  # ids [B, T]; float32 [B * T, vocabulary]
```"""


CARD = "README.md"
_TOKENIZER_FILES = {
    "gpt2": {"vocab.bpe": "merges.txt", "encoder.json": "vocab.json"},
    "hf": {"": "tokenizer.json"},
}


def model_card(manifest: dict[str, Any], folder: pathlib.Path) -> str:
    """Returns the README.md of the model in a folder."""
    architecture, counts, parent = manifest["architecture"], manifest["counts"], manifest["parent"]
    widths = architecture["d_ff"]
    d_ff = str(widths[0]) if len(set(widths)) == 1 else " ".join(map(str, widths))
    hf = manifest["format"] == "hf"
    has_tokenizer = any(
        all((folder / name).is_file() for name in files.values())
        for files in _TOKENIZER_FILES.values()
    )
    origin = (
        "A sub-model of a Matryoshka Teaching Assistant, as a plain model of its own. Extracted "
        "from step "
        f"{parent['step']} of `{parent['checkpoint']}` (fingerprint `{parent['fingerprint']}`)."
        if "checkpoint" in parent
        else f"Imported from `{parent['hf']}`."
    )
    front = [
        "---",
        f"library_name: {'transformers' if hf else 'matta_jax'}",
        "tags: [matta_jax, matryoshka, gpt2]",
    ]
    parts = [
        "\n".join([*front, "---"]),
        f"# {manifest['spec']}",
        origin,
        "\n".join(
            [
                "| | |",
                "|---|---|",
                f"| parameters | {counts['parameters']:,} |",
                f"| bytes ({manifest['dtype']}) | {counts['bytes']:,} |",
                f"| FLOPs per token, forward | {counts['flops_per_token']:,} |",
                f"| layers | {len(widths)} |",
                f"| d_model | {architecture['d_model']} |",
                f"| heads | {architecture['num_heads']}, each {architecture['head_dim']} wide |",
                f"| d_ff | {d_ff} |",
                f"| vocabulary | {architecture['vocab_size']:,} |",
                f"| longest sequence | {architecture['max_len']:,} |",
                f"| tokenizer | `{manifest['config']['data']['tokenizer']}` |",
            ]
        ),
    ]
    heads = architecture["d_model"] // architecture["head_dim"]
    padded = [f"narrower layers with zero neurons to d_ff {max(widths)}"] * (len(set(widths)) > 1)
    padded += [f"each layer with zero heads to {heads}"] * (heads > architecture["num_heads"])
    if hf and padded:
        parts.append(
            "**Padded.** Stock GPT-2 has layers of one size: filled up are "
            f"{', and '.join(padded)}. The function is "
            "the same, and the figures above are the model's own; this format stores and computes "
            "the padding too."
        )
    if not has_tokenizer and hf:
        parts.append("The tokenizer is not among these files; the table names it.")
    if manifest["scores"]:
        rows = [
            f"| {score['task']} | {score['value']:.4f} | `{score['corpus']}` | {score['date']} |"
            for score in manifest["scores"]
        ]
        parts.append("\n".join(["| task | score | corpus | date |", "|---|---|---|---|", *rows]))
    if "opt_state" in manifest:
        parts.append(
            "The optimiser's state is here too: `matta-train --init_from=THIS_FOLDER` goes on from "
            "its step."
        )
    if "certificate" in manifest:
        certificate = manifest["certificate"]
        parts.append(
            "Certificate: the largest difference to the TA's own slice is "
            f"{certificate['max_difference']}, over all "
            f"activations of a batch of {certificate['batch'][0]} x {certificate['batch'][1]} "
            "tokens "
            f"({certificate['backend']}, weights in {manifest['dtype']})."
        )
    parts += [block for block in (_LOAD[manifest["format"]], _OURS) if block]
    return "\n\n".join(parts) + "\n"


def copy_tokenizer(tokenizer: str, folder: pathlib.Path) -> None:
    """Copies a tokenizer's files, where they are known, to where transformers looks for them."""
    kind, _, where = tokenizer.partition(":")
    place = pathlib.Path(where)
    files = _TOKENIZER_FILES.get(kind, {})
    sources = {place / name if name else place: folder / target for name, target in files.items()}
    if not sources or not all(source.is_file() for source in sources):
        return
    for source, target in sources.items():
        shutil.copyfile(source, target)
