"""What is timed, and by which engine."""

import dataclasses

from matta_jax.config import FLOAT_TYPES, Config
from matta_jax.errors import UserError, check_choice
from matta_jax.packages import TIMED
from matta_jax.selection._space import check_count

MODES = ("prefill", "decode")
JAX = "jax"
LATENCY_ENGINES = (JAX, *TIMED)
"""What a time may be of: our own programs, or an engine that serves the files."""

_LLAMA_CPP = "llama.cpp"
# That are timed at once; their activations alone fill any device's memory.
_MOST_TOKENS = 2**24
# Of an engine: beyond those of any machine.
_MOST_THREADS = 4096


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is timed.

    Attributes:
      mode: `prefill`, the forward pass of whole sequences with the logits of their last tokens; or
        `decode`, one token more for each sequence, with its keys and values cached.
      batch_size: sequences.
      length: tokens of a sequence; in decode, those that the new one attends to.
      dtype: compute type of `jax`; engines compute in what their files hold.
      engine: `jax`, our programs on this device; `llama.cpp` or `transformers`, each in a process
        by itself, on files as they are extracted.
      threads: of an engine; None: one, and of `jax` all.
    """

    mode: str = "prefill"
    batch_size: int = 1
    length: int = 128
    dtype: str = "float32"
    engine: str = JAX
    threads: int | None = None

    def __post_init__(self) -> None:
        check_choice("latency_mode", self.mode, MODES)
        check_choice("latency_dtype", self.dtype, FLOAT_TYPES)
        check_choice("latency_engine", self.engine, LATENCY_ENGINES)
        for name in ("batch_size", "length"):
            check_count(f"latency_{name}", getattr(self, name), 1, _MOST_TOKENS)
        if self.batch_size * self.length > _MOST_TOKENS:
            raise UserError(
                f"latency_batch_size={self.batch_size} sequences of latency_length={self.length} "
                f"are too many tokens; keep their product within {_MOST_TOKENS:,}"
            )
        self._check_engine()

    def _check_engine(self) -> None:
        """Raises UserError for what an engine does not do."""
        if self.threads is not None:
            check_count("latency_threads", self.threads, 1, _MOST_THREADS)
            if self.engine == JAX:
                raise UserError(
                    f"latency_threads={self.threads} is of other engines, and latency_engine is "
                    "'jax', which takes all cores; leave it out"
                )
        if self.engine == JAX:
            return
        if self.dtype != "float32":
            raise UserError(
                f"latency_dtype={self.dtype!r} is of 'jax', and latency_engine is "
                f"{self.engine!r}, which computes in what its files hold; leave it out"
            )
        if self.mode == "decode" and self.length == 1:
            raise UserError(
                f"latency_length=1 must be at least 2 for a token of {self.engine}: there is one "
                "before it"
            )
        if self.engine == _LLAMA_CPP and self.batch_size > 1:
            raise UserError(
                f"latency_batch_size={self.batch_size} must be 1 for llama.cpp, whose server is "
                "timed on one text; leave it out"
            )

    def check_length(self, max_len: int) -> None:
        """Raises UserError when it is longer than a model's positions."""
        if self.length > max_len:
            raise UserError(f"latency_length={self.length} must be at most model.max_len={max_len}")
        if self.length > _positions(self.engine, max_len):
            raise UserError(
                f"latency_length={self.length} must be below model.max_len={max_len}: llama.cpp's "
                "server has no room for a prompt of all positions"
            )


def length_of_run(config: Config, engine: str = JAX) -> int:
    """The tokens of a sequence of a run, as many as an engine takes."""
    if config.model.num_positions is not None:
        return config.seq_len
    return max(1, min(config.seq_len, _positions(engine, config.model.max_len)))


def _positions(engine: str, max_len: int) -> int:
    return max_len - 1 if engine == _LLAMA_CPP else max_len
