"""Hugging Face's GPT-2: config.json and safetensors, read and written without torch.

Stock GPT-2 has one d_ff for all layers and d_model / head_dim heads. Narrower layers are padded
with zero neurons, and fewer heads with zero heads: the function is the same, the cost is that of
the widest. What was there before the padding stands in config.json under `matta_jax`, so that an
import takes it off again.
"""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from matta_jax.errors import UserError
from matta_jax.models import Architecture
from matta_jax.nesting import Names, logical_names, merge_granules, split_granules

# Our weight in a block: Hugging Face's, and the logical axes of each of its dimensions.
_Dims = tuple[Names, ...]
_LAYER: dict[str, tuple[str, _Dims]] = {
    "attention/w_qkv": ("attn.c_attn.weight", (("d_model",), ("qkv", "heads", "head_dim"))),
    "attention/b_qkv": ("attn.c_attn.bias", (("qkv", "heads", "head_dim"),)),
    "attention/w_out": ("attn.c_proj.weight", (("heads", "head_dim"), ("d_model",))),
    "attention/b_out": ("attn.c_proj.bias", (("d_model",),)),
    "mlp/w_in": ("mlp.c_fc.weight", (("d_model",), ("d_ff",))),
    "mlp/b_in": ("mlp.c_fc.bias", (("d_ff",),)),
    "mlp/w_out": ("mlp.c_proj.weight", (("d_ff",), ("d_model",))),
    "mlp/b_out": ("mlp.c_proj.bias", (("d_model",),)),
    "norm_attention/scale": ("ln_1.weight", (("d_model",),)),
    "norm_attention/bias": ("ln_1.bias", (("d_model",),)),
    "norm_mlp/scale": ("ln_2.weight", (("d_model",),)),
    "norm_mlp/bias": ("ln_2.bias", (("d_model",),)),
}
_OUTER = {
    "embed/tokens": "wte.weight",
    "embed/positions": "wpe.weight",
    "norm/scale": "ln_f.weight",
    "norm/bias": "ln_f.bias",
}
_PREFIX = "transformer."
_FIXED = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
    "add_cross_attention": False,
}
_OWN = ("num_heads", "d_ff", "head_granule", "d_ff_granule")  # What the padding hides.
_MEND = "name the folder of a GPT-2 model, or fetch it again"
_FLOATS = ("F64", "F32", "F16", "BF16")
_EQUIVALENT = {"activation_function": ("gelu_new", "gelu_pytorch_tanh")}


def hf_config(architecture: Architecture, dtype: str, eos_id: int | None) -> dict[str, Any]:
    """The config.json of a model. Raises UserError when stock GPT-2 has no room for it."""
    if architecture.num_classes:
        raise UserError(
            "format='hf' is for language models; write a scorer as format=safetensors or orbax"
        )
    heads, left = divmod(architecture.d_model, architecture.head_dim)
    if left or architecture.num_heads > heads:
        raise UserError(
            f"format='hf': {architecture.num_heads} heads of {architecture.head_dim} do not fit in "
            "d_model="
            f"{architecture.d_model} of stock GPT-2; extract fewer heads or a wider d_model, or "
            "use format=safetensors"
        )
    return {
        **_FIXED,
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": architecture.vocab_size,
        "n_positions": architecture.max_len,
        "n_embd": architecture.d_model,
        "n_layer": len(architecture.d_ff),
        "n_head": heads,
        "n_inner": max(architecture.d_ff),
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "torch_dtype": dtype,
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        "matta_jax": {name: getattr(architecture, name) for name in _OWN},
    }


def architecture_of_hf(folder: pathlib.Path, *, mend: str = _MEND) -> Architecture:
    """Reads config.json. Raises UserError when it is missing, damaged, or of another model than
    ours.
    """
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text())
        known = config.get("matta_jax", {})
        for field, wanted in _FIXED.items():
            if config.get(field, wanted) not in _EQUIVALENT.get(field, (wanted,)):
                raise UserError(
                    f"{str(file)!r}: {field}={config[field]!r} is not supported, only {wanted!r}; "
                    "import a GPT-2 model"
                )
        _natural("model_type", len(config["model_type"]))
        d_model, heads, layers = (
            _natural(name, config[name]) for name in ("n_embd", "n_head", "n_layer")
        )
        inner = (
            4 * d_model if config.get("n_inner") is None else _natural("n_inner", config["n_inner"])
        )
        own = {
            "num_heads": heads,
            "d_ff": [inner] * layers,
            "head_granule": heads,
            "d_ff_granule": inner,
        } | known
        architecture = Architecture(
            vocab_size=_natural("vocab_size", config["vocab_size"]),
            max_len=_natural("n_positions", config["n_positions"]),
            d_model=d_model,
            num_heads=_natural("num_heads", own["num_heads"]),
            head_dim=d_model // heads,
            d_ff=tuple(_natural("d_ff", width) for width in own["d_ff"]),
            head_granule=_natural("head_granule", own["head_granule"]),
            d_ff_granule=_natural("d_ff_granule", own["d_ff_granule"]),
        )
        rules = {
            "n_head divides n_embd": d_model % heads == 0,
            "d_ff has n_layer entries": len(architecture.d_ff) == layers,
            "n_inner is the largest d_ff": max(architecture.d_ff) == inner,
            "num_heads is at most n_head": architecture.num_heads <= heads,
            "head_granule divides num_heads": architecture.num_heads % architecture.head_granule
            == 0,
            "d_ff_granule divides d_ff": all(
                width % architecture.d_ff_granule == 0 for width in architecture.d_ff
            ),
        }
        for rule, holds in rules.items():
            if not holds:
                raise ValueError(f"it must be that {rule}")
    except FileNotFoundError:
        raise UserError(
            f"{str(folder)!r} is not a Hugging Face model (no config.json); {mend}"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        detail = (
            f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        )
        raise UserError(
            f"{str(file)!r} cannot be read as GPT-2's config ({detail}); {mend}"
        ) from None
    return architecture


def _natural(name: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
    return value


def to_hf(
    flat: Mapping[str, np.ndarray], names: Mapping[str, Names], architecture: Architecture
) -> dict[str, Any]:
    """Returns the tensors of model.safetensors."""
    room = _sizes(
        architecture, architecture.d_model // architecture.head_dim, max(architecture.d_ff)
    )
    tensors = {_PREFIX + theirs: np.asarray(flat[ours]) for ours, theirs in _OUTER.items()}
    layer = 0
    for i, run in enumerate(architecture.sub_model.runs):
        for j in range(len(run.layers)):
            for ours, (theirs, dims) in _LAYER.items():
                path = f"blocks/{i}/{ours}"
                order = [name for dim in dims for name in dim]
                part = _logical(np.asarray(flat[path][j]), names[path][1:], order)
                padding = [(0, room[name] - n) for name, n in zip(order, part.shape, strict=True)]
                shape = [int(np.prod([room[name] for name in dim])) for dim in dims]
                tensors[f"{_PREFIX}h.{layer}.{theirs}"] = np.pad(part, padding).reshape(shape)
            layer += 1
    return tensors


def readers(
    folder: pathlib.Path,
    architecture: Architecture,
    names: Mapping[str, Names],
    *,
    mend: str = _MEND,
) -> dict[str, Callable[[tuple[Any, ...]], np.ndarray]]:
    """For each of our weights, by path, a function that reads the part of an index from Hugging
    Face's files.

    Raises:
      UserError: files or tensors are missing, or of other shapes than config.json says.
    """
    tensors = _Tensors(folder, mend)
    heads, inner = architecture.d_model // architecture.head_dim, max(architecture.d_ff)
    room, own = (
        _sizes(architecture, heads, inner),
        _sizes(architecture, architecture.num_heads, inner),
    )
    table = {
        "embed/tokens": (architecture.vocab_size, architecture.d_model),
        "embed/positions": (architecture.max_len, architecture.d_model),
    }
    for ours, theirs in _OUTER.items():
        tensors.check(theirs, table.get(ours, (architecture.d_model,)))
    tensors.check_tied()
    for layer in range(len(architecture.d_ff)):
        for theirs, dims in _LAYER.values():
            shape = tuple(int(np.prod([room[name] for name in dim])) for dim in dims)
            tensors.check(f"h.{layer}.{theirs}", shape)
    if any(name.startswith(f"h.{len(architecture.d_ff)}.") for name in tensors.files):
        raise UserError(
            f"{str(folder)!r}: there are more layers than n_layer={len(architecture.d_ff)} says; "
            f"{mend}"
        )

    def outer(theirs: str) -> Callable[[tuple[Any, ...]], np.ndarray]:
        return lambda index: tensors[theirs][index]

    def stack(
        i: int, ours: str, first: int, length: int, d_ff: int
    ) -> Callable[[tuple[Any, ...]], np.ndarray]:
        theirs, dims = _LAYER[ours]
        axes = names[f"blocks/{i}/{ours}"][1:]
        sizes = own | {"d_ff": d_ff}

        def one(layer: int) -> np.ndarray:
            tensor = tensors[f"h.{first + layer}.{theirs}"]
            order = [name for dim in dims for name in dim]
            part = tensor.reshape([room[name] for name in order])
            kept = part[tuple(slice(0, sizes[name]) for name in order)]
            if np.count_nonzero(part) != np.count_nonzero(kept):
                raise ValueError(
                    f"tensor h.{first + layer}.{theirs} is not zero outside the sizes of "
                    "config.json"
                )
            return _granulated(kept, order, axes, architecture)

        return lambda index: np.stack([one(layer) for layer in np.arange(length)[index[0]]])[
            (slice(None), *index[1:])
        ]

    result = {ours: outer(theirs) for ours, theirs in _OUTER.items()}
    first = 0
    for i, run in enumerate(architecture.sub_model.runs):
        for ours in _LAYER:
            result[f"blocks/{i}/{ours}"] = stack(i, ours, first, len(run.layers), run.d_ff)
        first += len(run.layers)
    return result


def _sizes(architecture: Architecture, heads: int, d_ff: int) -> dict[str, int]:
    head_dim, d_model = architecture.head_dim, architecture.d_model
    return {"d_model": d_model, "qkv": 3, "heads": heads, "head_dim": head_dim, "d_ff": d_ff}


def _logical(weight: np.ndarray, axes: Names, order: Sequence[str]) -> np.ndarray:
    """A layer's weight with its logical axes in `order`."""
    names = logical_names(axes)
    return merge_granules(weight, axes).transpose([names.index(name) for name in order])


def _granulated(
    part: np.ndarray, order: Sequence[str], axes: Names, architecture: Architecture
) -> np.ndarray:
    """Undoes `_logical`."""
    granules = architecture.granules
    return split_granules(
        part.transpose([order.index(name) for name in logical_names(axes)]), axes, granules
    )


class _Tensors:
    """The tensors of a folder's safetensors files, in one or several, with or without the prefix
    `transformer.`.
    """

    def __init__(self, folder: pathlib.Path, mend: str):
        self.folder, self.mend = folder, mend
        index = folder / "model.safetensors.index.json"
        names = ["model.safetensors"]
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
                if not names or any(pathlib.Path(name).name != name for name in names):
                    raise ValueError("weight_map must name files of the folder")
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                raise UserError(f"{str(index)!r} cannot be read ({error}); {mend}") from None
        self.files = {
            stored.removeprefix(_PREFIX): (file, stored)
            for file in (self._open(folder / name) for name in names)
            for stored in list(file.keys())
        }

    def _open(self, path: pathlib.Path) -> Any:
        if not path.is_file():
            hint = (
                "; convert pytorch_model.bin first"
                if (self.folder / "pytorch_model.bin").exists()
                else ""
            )
            raise UserError(f"{str(path)!r} is missing; {self.mend}{hint}")
        try:
            return require_safetensors().safe_open(path, "np")
        except UserError:
            raise
        except (
            Exception
        ) as error:  # The library raises its own and several others for damaged files.
            raise UserError(
                f"{str(path)!r} is damaged ({' '.join(str(error).split())[:160]}); {self.mend}"
            ) from None

    def __getitem__(self, name: str) -> np.ndarray:
        file, stored = self.files[name]
        return np.asarray(file.get_tensor(stored))

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self.files:
            raise UserError(f"{str(self.folder)!r}: tensor {name} is missing; {self.mend}")
        file, stored = self.files[name]
        about = file.get_slice(stored)
        found = tuple(about.get_shape())
        if found != shape:
            raise UserError(
                f"{str(self.folder)!r}: tensor {name} has shape {found}, but config.json says "
                f"{shape}; "
                "they are of different models"
            )
        if about.get_dtype() not in _FLOATS:
            raise UserError(
                f"{str(self.folder)!r}: tensor {name} is of type {about.get_dtype()}, not a float; "
                f"{self.mend}"
            )

    def check_tied(self) -> None:
        """An untied head is another model than ours."""
        if "lm_head.weight" in self.files and not np.array_equal(
            self["lm_head.weight"], self["wte.weight"]
        ):
            raise UserError(
                f"{str(self.folder)!r}: lm_head.weight differs from wte.weight; only tied heads "
                "are supported"
            )


def require_safetensors() -> Any:
    """Imports the library. Raises UserError when the extra is not installed."""
    try:
        import safetensors
        import safetensors.numpy
    except ImportError:
        raise UserError(
            "format='hf' and 'safetensors' need the package safetensors: pip install "
            "'matta_jax[hf]'"
        ) from None
    return safetensors
