"""The model card: what a folder holds, where it came from, how good it is and how to load it."""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from matta_jax import storage
from matta_jax.models import Architecture, architecture_from_json
from matta_jax.packages._card_engines import engine_parts
from matta_jax.packages._packaging import FOREIGN_FORMATS, HF_FORMATS
from matta_jax.packages.gguf import kind_of
from matta_jax.packages.hf import Layout, hf_shapes, open_hf
from matta_jax.tokenizers import companions

_FOLDER = "THIS_FOLDER"
_SAFETENSORS = """import safetensors.numpy  # Names and axes: manifest.json

weights = safetensors.numpy.load_file("THIS_FOLDER/model.safetensors")"""
_GGUF = "llama-cli --model THIS_FOLDER/model.gguf --prompt 'Once upon a time'"
_OURS = """import matta_jax

model = matta_jax.load_model("THIS_FOLDER")
"""

CARD = "README.md"
_TOKENIZER_FILES = {
    "gpt2": {"vocab.bpe": "merges.txt", "encoder.json": "vocab.json"},
    "hf": {"": "tokenizer.json"},
}


def model_card(manifest: dict[str, Any], folder: storage.Path) -> str:
    """Returns the README.md of the model in a folder."""
    architecture = architecture_from_json(manifest["architecture"])
    layout = _layout_of(manifest, folder)
    library = library_of(manifest["format"])
    tags = f"matta_jax, matryoshka, {architecture.family_name}"
    parts = [
        f"---\nlibrary_name: {library}\ntags: [{tags}]\n---",
        f"# {manifest['spec']}",
        _origin(manifest["parent"]),
        _figures(manifest, architecture),
    ]
    if layout is not None and not layout.is_unpadded:
        parts += _padding(layout, architecture, manifest["counts"]["parameters"])
    if manifest["format"] == "gguf":
        parts += _llama_cpp(manifest, architecture)
    reads_texts = "vocab" in architecture.fixed
    if layout is not None and reads_texts and not _has_tokenizer(folder):
        parts.append("The tokenizer is not among these files; the table names it.")
    if manifest["scores"]:
        parts.append(_scores(manifest["scores"]))
    if "opt_state" in manifest:
        parts.append(
            "The optimiser's state is here too: `matta-train --init_from=THIS_FOLDER` goes on from "
            "its step."
        )
    if "certificate" in manifest:
        parts.append(_certificate(manifest))
    if "engines" in manifest:
        parts.append(_engines(manifest))
    parts += [f"```python\n{code}\n```" for code in _usage(manifest, architecture, layout)]
    parts += engine_parts(manifest, layout, _has_tokenizer(folder))
    return "\n\n".join(parts) + "\n"


def usage(manifest: dict[str, Any], folder: storage.Path) -> list[str]:
    """How the model in a folder is loaded: code with the folder in it, as the card has it with a
    word in its place. In a shell for GGUF, in Python else.
    """
    architecture = architecture_from_json(manifest["architecture"])
    layout = _layout_of(manifest, folder)
    # As a text of Python, and as a word of a shell.
    text = json.dumps(str(folder), ensure_ascii=False)[1:-1]
    codes = [code.replace(_FOLDER, text) for code in _usage(manifest, architecture, layout)]
    if manifest["format"] == "gguf":
        file = shlex.quote(f"{folder}/model.gguf")
        codes.insert(0, _GGUF.replace(f"{_FOLDER}/model.gguf", file))
    return codes


def library_of(format: str) -> str:
    """The library that loads a format."""
    if format in HF_FORMATS:
        return "transformers"
    return {"gguf": "llama.cpp", "timm": "timm"}.get(format, "matta_jax")


def _layout_of(manifest: dict[str, Any], folder: storage.Path) -> Layout | None:
    """That of a folder by other libraries' names; None: it has ours, or is a file of llama.cpp."""
    # As it was written: its config.json tells whether it is padded.
    return open_hf(folder).layout if manifest["format"] in FOREIGN_FORMATS else None


def _llama_cpp(manifest: dict[str, Any], architecture: Architecture) -> list[str]:
    """How llama.cpp loads a model, and what it pads."""
    kind = kind_of(architecture)
    padding = []
    if not kind.has_layer_sizes:
        padding = _padding(kind.layout, architecture, manifest["counts"]["parameters"])
    return [
        *padding,
        f"`model.gguf` is of llama.cpp's architecture `{kind.name}`, with matrices in "
        f"{_numbers(manifest)}. An engine of llama.cpp, its servers and its bindings load it as it "
        "is:",
        f"```sh\n{_GGUF}\n```",
        *manifest.get("notes", ()),
    ]


def _numbers(manifest: dict[str, Any]) -> str:
    """The type of most numbers."""
    return manifest.get("numbers", manifest["dtype"])


def _usage(
    manifest: dict[str, Any], architecture: Architecture, layout: Layout | None
) -> list[str]:
    """How a model is loaded and run, in Python."""
    usage = [_OURS + architecture.family.usage]
    if layout is not None:
        return [layout.usage, *usage]
    return [_SAFETENSORS, *usage] if manifest["format"] == "safetensors" else usage


def _origin(parent: dict[str, Any]) -> str:
    if "checkpoint" not in parent:
        (source,) = parent.values()
        return f"Imported from `{source}`."
    return (
        "A sub-model of a Matryoshka Teaching Assistant, as a plain model of its own. Extracted "
        f"from step {parent['step']} of `{parent['checkpoint']}` (fingerprint "
        f"`{parent['fingerprint']}`)."
    )


def _figures(manifest: dict[str, Any], architecture: Architecture) -> str:
    """The table of what the model costs and is."""
    counts = manifest["counts"]
    rows = {
        "parameters": f"{counts['parameters']:,}",
        f"bytes ({_numbers(manifest)})": f"{counts['bytes']:,}",
        "FLOPs per token, forward": f"{counts['flops_per_token']:,}",
        "layers": str(architecture.num_layers),
        "d_model": str(architecture.d_model),
        "heads": _heads(architecture),
        "d_ff": _listed(architecture.along("d_ff")),
    }
    if "vocab" in architecture.fixed:
        rows |= {
            "vocabulary": f"{architecture.vocab_size:,}",
            "longest sequence": f"{architecture.max_len:,}",
            "tokenizer": f"`{manifest['config']['data']['tokenizer']}`",
        }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _heads(architecture: Architecture) -> str:
    counts = _listed(architecture.along(architecture.family.heads))
    queries = architecture.fixed.get("queries")
    shared = "" if queries is None else f" of keys and values with {queries} queries each"
    return f"{counts}{shared}, each {architecture.head_dim} wide"


def _listed(sizes: Sequence[int]) -> str:
    """One size, or that of each layer."""
    return str(sizes[0]) if len(set(sizes)) == 1 else " ".join(map(str, sizes))


def _padding(layout: Layout, architecture: Architecture, parameters: int) -> list[str]:
    """What a stock model needs to have layers of one size, in words."""
    padded = []
    widths, heads = architecture.along("d_ff"), architecture.along(architecture.family.heads)
    room = layout.room(architecture)
    if len(set(widths)) > 1:
        padded.append(f"narrower layers with zero neurons to d_ff {max(widths)}")
    if min(heads) < room[architecture.family.heads]:
        padded.append(f"each layer with zero heads to {room[architecture.family.heads]}")
    if not padded:
        return []
    shapes = hf_shapes(architecture)
    stored = sum(math.prod(shape) for shape in shapes.values())
    return [
        f"**Padded.** Stock {layout.title} has layers of one size: filled up are "
        f"{', and '.join(padded)}. The function is the same, and the figures above are the model's "
        f"own; this format stores and computes the padding too: {stored:,} parameters in place of "
        f"{parameters:,}, {100 * (stored / parameters - 1):.1f} % more."
    ]


def _has_tokenizer(folder: storage.Path) -> bool:
    return any(
        all((folder / name).is_file() for name in files.values())
        for files in _TOKENIZER_FILES.values()
    )


def _scores(scores: list[dict[str, Any]]) -> str:
    rows = [
        f"| {task_of(score)} | {_value(score)} | `{score['corpus']}` | {score['date']} |"
        for score in scores
    ]
    return "\n".join(["| task | score | corpus | date |", "|---|---|---|---|", *rows])


def task_of(score: Mapping[str, Any]) -> str:
    """The task of a score, with the type in which it was computed, where that is not float32:
    figures in two types do not compare.
    """
    task, dtype = score["task"], score.get("compute_dtype")
    return task if dtype is None else f"{task} in {dtype}"


def _value(score: dict[str, Any]) -> str:
    # A file holds null for a number that is not finite.
    return "not finite" if score["value"] is None else f"{score['value']:.4f}"


def _certificate(manifest: dict[str, Any]) -> str:
    certificate = manifest["certificate"]
    rows, length = certificate["batch"]
    return (
        "Certificate: the largest difference to the TA's own slice is "
        f"{certificate['max_difference']}, over all activations of a batch of {rows} x {length} "
        f"positions ({certificate['backend']}, weights in {_numbers(manifest)})."
    )


def _engines(manifest: dict[str, Any]) -> str:
    """The certificates across engines."""
    rows = [
        "| engine | format | log-probabilities differ at most | on average | limit | parameters |",
        "|---|---|---|---|---|---|",
    ]
    for name, certificate in sorted(manifest["engines"].items()):
        num_rows, length = certificate["batch"]
        batch = f"{num_rows} x {length} positions, logits to {certificate['largest_logit']:.3g}"
        cells = (
            f"{name} {certificate['version']}",
            f"{certificate['format']}, {certificate['numbers']}",
            f"{certificate['max_difference']:.2g} ({batch})",
            f"{certificate['mean_difference']:.2g}",
            f"{certificate['limit']:.2g} ({certificate['limit_of']})",
            f"{certificate['parameters']:,}",
        )
        rows.append(f"| {' | '.join(cells)} |")
    told = "These engines ran the model, and were compared with it in JAX, in float32:"
    return "\n".join([told, "", *rows])


def copy_tokenizer(tokenizer: str, folder: storage.Path) -> None:
    """Copies a tokenizer's files, where they are known, to where transformers looks for them."""
    kind, _, where = tokenizer.partition(":")
    place = storage.path(where)
    files = _TOKENIZER_FILES.get(kind, {})
    sources = {place / name if name else place: folder / target for name, target in files.items()}
    if not sources or not all(source.is_file() for source in sources):
        return
    for source, target in sources.items():
        storage.copy_file(source, target)
    for source in companions(tokenizer):
        storage.copy_file(source, folder / source.name)
