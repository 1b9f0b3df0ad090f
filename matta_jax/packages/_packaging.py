"""How a model is written: its format, its type, the size of its files."""

import dataclasses
import math

import jax.numpy as jnp

from matta_jax.errors import UserError, check_choice
from matta_jax.nesting import Counts

FORMATS = ("orbax", "safetensors", "hf", "vllm", "timm", "gguf")
# Folders of Hugging Face's layout.
HF_FORMATS = ("hf", "vllm")
# Folders with a config.json and tensors by names of other libraries.
FOREIGN_FORMATS = (*HF_FORMATS, "timm")
STOCK, MIXED, VLLM, TIMM = "stock", "mixed", "vllm", "timm"
"""Styles of such folders: padded where layers differ; with code for layers that differ; vLLM's;
timm's.
"""

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
QUANTIZATIONS = ("f32", "f16", "bf16", "q8_0", "q5_0", "q4_0")
"""Types of matrices in GGUF files that are written here."""
K_QUANTS = {
    "q2_k": 10,
    "q3_k_m": 12,
    "q4_k_s": 14,
    "q4_k_m": 15,
    "q5_k_s": 16,
    "q5_k_m": 17,
    "q6_k": 18,
}
"""Those that llama.cpp's own quantiser writes, and `general.file_type` as it numbers them."""
_GGUF_TYPES = {"fp32": "f32", "bf16": "bf16"}


@dataclasses.dataclass(frozen=True)
class Packaging:
    """How models are written.

    Attributes:
      format: `orbax`, `safetensors`, `hf`, `vllm`, `timm` or `gguf`.
      dtype: `fp32` or `bf16`.
      with_optimizer: whether the sub-model's part of the optimiser state goes along (orbax).
      overwrite: whether an extracted model may be replaced.
      max_shard_gb: GB (1e9 bytes) that a file of `safetensors` or `hf` has at most; a model of more
        is split into several, with an index. A tensor is never split.
      pad: whether layers of `hf` that differ are padded to one size, for stock classes; else the
        folder has a few lines of code that give each its own.
      quantize: of `gguf`, the type of matrices, one of `QUANTIZATIONS` or `K_QUANTS`; None: that
        of dtype.
    """

    format: str = "orbax"
    dtype: str = "fp32"
    with_optimizer: bool = False
    overwrite: bool = False
    max_shard_gb: float = 5.0
    pad: bool = False
    quantize: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in {"format": FORMATS, "dtype": tuple(DTYPES)}.items():
            check_choice(name, getattr(self, name), allowed)
        self._check_quantize()
        if self.with_optimizer and (self.format, self.dtype) != ("orbax", "fp32"):
            raise UserError(
                "with_optimizer needs format=orbax and dtype=fp32: training goes on from these "
                "alone"
            )
        if self.pad and self.format != "hf":
            raise UserError(
                f"pad=True is for format=hf, not {self.format!r}, whose layers have their own "
                "sizes; leave it out"
            )
        if not (self.max_shard_gb > 0 and math.isfinite(self.max_shard_gb)):
            raise UserError(
                f"max_shard_gb={self.max_shard_gb!r} must be above 0 and finite, such as 5"
            )

    def _check_quantize(self) -> None:
        if self.quantize is None:
            return
        check_choice("quantize", self.quantize, [*QUANTIZATIONS, *K_QUANTS])
        if self.format != "gguf":
            raise UserError(
                f"quantize={self.quantize!r} needs format=gguf, and format is {self.format!r}; "
                "leave it out, or give --format=gguf"
            )
        if self.dtype != "fp32" and self.quantize != self.gguf_type_of_dtype:
            raise UserError(
                f"quantize={self.quantize!r} needs dtype=fp32, and dtype is {self.dtype!r}: it "
                "rounds by itself; leave dtype out"
            )

    @property
    def gguf_type_of_dtype(self) -> str:
        """The type of matrices in a GGUF file where no other is asked for."""
        return _GGUF_TYPES[self.dtype]

    @property
    def gguf_type(self) -> str:
        """The type of matrices in a GGUF file."""
        return self.quantize or self.gguf_type_of_dtype

    @property
    def is_k_quant(self) -> bool:
        """Whether llama.cpp's quantiser writes the file, which alone tells what it rounds to."""
        return self.quantize in K_QUANTS

    @property
    def numbers(self) -> str:
        """The type of most numbers in the files, as a manifest and a card name it."""
        is_rounded = self.quantize not in (None, self.gguf_type_of_dtype)
        return self.gguf_type if is_rounded else self.dtype

    @property
    def about(self) -> dict[str, str]:
        """What a manifest says of it."""
        fields = {"format": self.format, "dtype": self.dtype}
        return fields if self.numbers == self.dtype else fields | {"numbers": self.numbers}

    @property
    def style(self) -> str | None:
        """Of a folder of `FOREIGN_FORMATS`, as `hf_config` takes it; None: it is of another."""
        if self.format == "hf":
            return STOCK if self.pad else MIXED
        return {"vllm": VLLM, "timm": TIMM}.get(self.format)

    @property
    def shard_bytes(self) -> int:
        """Of a file, at most."""
        return int(self.max_shard_gb * 1e9)


def at_dtype(counts: Counts, dtype: str) -> Counts:
    """The counts of a model that is stored in a type of `DTYPES`."""
    return dataclasses.replace(counts, bytes=counts.parameters * jnp.dtype(DTYPES[dtype]).itemsize)
