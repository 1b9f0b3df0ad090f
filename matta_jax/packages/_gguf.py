"""Models in llama.cpp's GGUF files: Llama, Qwen 2.5 and Qwen 3, dequantised by the gguf package.

A file of the architecture `llama` has the pairs of queries and keys that turn together side by
side, where Hugging Face's have them half a head apart; of all others they are as there.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from matta_jax import storage
from matta_jax.errors import UserError, shorten
from matta_jax.packages._llama2c import halves_apart
from matta_jax.packages._safetensors import ForeignTensors, one_line
from matta_jax.packages.hf import Foreign, layout_of_type
from matta_jax.tokenizers import Piece, PieceKind, Spaces, merges_tokenizer, spm_tokenizer

_MEND = "name a GGUF file of a Llama, Qwen 2.5 or Qwen 3, or fetch it again"
ARCHITECTURES = ("llama", "qwen2", "qwen3")
# Their name of each of Hugging Face's tensors.
_OUTER = {
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
_FREQUENCIES = "rope_freqs.weight"
# Of Llama 3.1 and 3.3, and of 3.2: files hold what these make of the frequencies alone.
_LLAMA3: tuple[dict[str, Any], ...] = tuple(
    {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    for factor in (8.0, 32.0)
)


def require_gguf() -> Any:
    """Imports the package. Raises UserError when the extra is not installed."""
    try:
        import gguf
    except ImportError:
        raise UserError("GGUF files need the package gguf: pip install 'matta_jax[gguf]'") from None
    return gguf


class GGUFFile:
    """An open file: what it says, and its tensors.

    Attributes:
      fields: by name.
      tensors: by name.
    """

    def __init__(self, file: storage.Path):
        gguf = require_gguf()
        if not file.is_file():
            raise UserError(f"gguf={str(file)!r} is missing; {_MEND}")
        try:
            reader = gguf.GGUFReader(storage.local_copy(file))
            self.fields = {name: field.contents() for name, field in reader.fields.items()}
            self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        except Exception as error:  # The package raises many kinds for damaged files.
            raise UserError(f"gguf={str(file)!r} is damaged ({one_line(error)}); {_MEND}") from None
        self._gguf, self._file = gguf, file

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, its rows first."""
        return tuple(int(size) for size in reversed(self.tensors[name].shape))

    def read(self, name: str) -> np.ndarray:
        """A tensor in float32."""
        tensor = self.tensors[name]
        try:
            values = self._gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise UserError(
                f"gguf={str(self._file)!r}: {name} is quantised in a way that the gguf package "
                f"cannot undo ({one_line(error)}); name a file of another type, such as Q8_0"
            ) from None
        return np.asarray(values, np.float32).reshape(self.shape(name))


def open_gguf(file: storage.Path) -> Foreign:
    """Opens a GGUF file. Raises UserError when it is missing, damaged, or of an architecture that
    is not known.
    """
    gguf_file = GGUFFile(file)
    kind = gguf_file.fields.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise UserError(
            f"gguf={str(file)!r}: general.architecture={shorten(kind)} is not supported, only "
            f"{', '.join(ARCHITECTURES)}; {_MEND}"
        )
    try:
        config = _config(gguf_file, kind)
    except KeyError as error:
        raise UserError(f"gguf={str(file)!r} has no {error}; {_MEND}") from None
    layout = layout_of_type(kind)
    tensors = functools.partial(_Tensors, gguf_file, file, layout.prefix, config)
    return Foreign(layout, config, file, tensors, _MEND)


def _config(file: GGUFFile, kind: str) -> dict[str, Any]:
    """What config.json would say of the model."""

    def said(name: str) -> Any:
        return file.fields[f"{kind}.{name}"]

    heads = said("attention.head_count")
    config = {
        "model_type": kind,
        "hidden_size": said("embedding_length"),
        "intermediate_size": said("feed_forward_length"),
        "num_hidden_layers": said("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.fields.get(f"{kind}.attention.head_count_kv", heads),
        "max_position_embeddings": said("context_length"),
        "rms_norm_eps": said("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    config["vocab_size"] = file.shape("token_embd.weight")[0]
    for name in ("attention.key_length", "rope.dimension_count"):
        head_dim = file.fields.get(f"{kind}.{name}")
        if head_dim is not None and config.setdefault("head_dim", head_dim) != head_dim:
            raise UserError(
                f"{name}={head_dim} is not the width of a head, {config['head_dim']}: heads that "
                "turn in part are not supported; name another model"
            )
    # float32 in a file: as written, 1e-05 would be 9.99999974e-06.
    config["rms_norm_eps"] = float(f"{config['rms_norm_eps']:.6g}")
    return config | {"rope_parameters": _rope(file, kind, config)}


def _rope(file: GGUFFile, kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    theta = float(file.fields.get(f"{kind}.rope.freq_base", 10_000.0))
    scaling = file.fields.get(f"{kind}.rope.scaling.type", "none")
    if _FREQUENCIES in file.tensors:
        return {**_llama3_of(file, theta), "rope_theta": theta}
    if scaling == "none":
        return {"rope_type": "default", "rope_theta": theta}

    parameters = {"rope_type": scaling, "rope_theta": theta}
    parameters["factor"] = file.fields[f"{kind}.rope.scaling.factor"]
    length = file.fields.get(f"{kind}.rope.scaling.original_context_length")
    if scaling == "yarn" and length is not None:
        parameters["original_max_position_embeddings"] = length
    return parameters


def _llama3_of(file: GGUFFile, theta: float) -> dict[str, Any]:
    """The parameters whose factors of the frequencies a file holds."""
    factors = file.read(_FREQUENCIES)
    turns = 8192 / (2 * math.pi * theta ** (np.arange(len(factors)) / len(factors)))
    for parameters in _LLAMA3:
        low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
        share = np.clip((turns - low) / (high - low), 0, 1)
        expected = 1 / ((1 - share) / parameters["factor"] + share)
        if np.allclose(factors, expected, rtol=1e-3):
            return dict(parameters)
    raise UserError(
        f"{_FREQUENCIES} is of no model of Llama 3.1 to 3.3; import its Hugging Face folder by --hf"
    )


class _Tensors(ForeignTensors):
    """The tensors of a file, by Hugging Face's names."""

    def __init__(
        self, gguf_file: GGUFFile, file: storage.Path, prefix: str, config: Mapping[str, Any]
    ):
        super().__init__(file, prefix, _MEND)
        self._gguf_file, self._config = gguf_file, config
        outer = {gguf_name: name for name, gguf_name in _OUTER.items()}
        inner = {gguf_name: name for name, gguf_name in _LAYER.items()}
        for gguf_name in gguf_file.tensors:
            if gguf_name == _FREQUENCIES:
                continue
            # One that is not known keeps its name, and is refused by it.
            name = outer.get(gguf_name, gguf_name)
            _, _, of_layer = gguf_name.partition("blk.")
            layer, _, part = of_layer.partition(".")
            if part in inner:
                name = f"layers.{layer}.{inner[part]}"
            self.files[name] = gguf_name

    def about(self, name: str) -> tuple[tuple[int, ...], str]:
        # Whatever it is stored as, it is read as float32.
        return self._gguf_file.shape(self.files[name]), "F32"

    def __getitem__(self, name: str) -> np.ndarray:
        values = self._gguf_file.read(self.files[name.removeprefix(self._prefix)])
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        module = name.split(".")[-2]
        if self._config["model_type"] != "llama" or module not in heads:
            return values
        return halves_apart(values, self._config[heads[module]])


def gguf_tokenizer(file: storage.Path) -> tuple[dict[str, Any], str | None]:
    """The rules of a file's tokenizer, as tokenizer.json has them, and its chat template. Raises
    UserError for a kind that is not known.
    """
    fields = GGUFFile(file).fields
    kind = fields.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama") or "tokenizer.ggml.tokens" not in fields:
        raise UserError(
            f"gguf={str(file)!r}: tokenizer.ggml.model={shorten(kind)} is not supported, only gpt2 "
            "and llama; name the model's tokenizer by --tokenizer"
        )
    tokens = fields["tokenizer.ggml.tokens"]
    scores = fields.get("tokenizer.ggml.scores", [0.0] * len(tokens))
    kinds = fields.get("tokenizer.ggml.token_type", [PieceKind.NORMAL] * len(tokens))
    pieces = [
        Piece(text, score, PieceKind(number))
        for text, score, number in zip(tokens, scores, kinds, strict=True)
    ]
    template = fields.get("tokenizer.chat_template")
    start_id = None
    if fields.get("tokenizer.ggml.add_bos_token", kind == "llama"):
        start_id = fields.get("tokenizer.ggml.bos_token_id")
    if kind == "gpt2":
        split = fields.get("tokenizer.ggml.pre", "gpt-2")
        merges = fields["tokenizer.ggml.merges"]
        return merges_tokenizer(pieces, merges, split, start_id), template
    spaces = Spaces(
        adds_first=fields.get("tokenizer.ggml.add_space_prefix", True),
        collapses=fields.get("tokenizer.ggml.remove_extra_whitespaces", False),
    )
    return spm_tokenizer(pieces, spaces, start_id), template
