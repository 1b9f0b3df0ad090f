"""The megabytes of the GGUF files that sub-models of a run are written as."""

import dataclasses
from collections.abc import Sequence

from matta_jax.checkpoints import Source
from matta_jax.errors import UserError
from matta_jax.nesting import SubModel
from matta_jax.packages import Packaging, check_format, file_bytes
from matta_jax.selection._space import Budget, Group, Space
from matta_jax.selection._workload import JAX, Workload

# Of what a file says of itself, which grows by a few bytes with the digits of its sizes.
_ROOM = 256


class FileSizes:
    """The size of a sub-model's file whose matrices are of a type.

    Attributes:
      numbers: the type.
    """

    def __init__(self, source: Source, numbers: str):
        self._source = source
        self.numbers = numbers
        self._megabytes: dict[SubModel, float] = {}

    def __call__(self, sub_model: SubModel) -> float:
        """Megabytes (10^6 bytes) of the file, all of it, as it would be written."""
        if sub_model not in self._megabytes:
            architecture = self._source.architecture_of(sub_model)
            tokenizer = self._source.config.data.tokenizer
            self._megabytes[sub_model] = file_bytes(architecture, self.numbers, tokenizer) / 1e6
        return self._megabytes[sub_model]

    def linear(self, group: Group) -> tuple[float, list[float]]:
        """What is added to the sum of a group's layers at most, and a layer of each option."""
        options = self._source.nest.layer_options
        depth = len(group.layers)
        layers = [self(group.uniform(option)) / depth for option in options]

        # A mix says its sizes layer by layer, and may be padded.
        mixed = [options[i % len(options)] for i in range(depth)]
        parts = sum(layers[i % len(options)] for i in range(depth))
        surplus = max(self(group.member(mixed)) - parts, 0.0)
        return surplus + _ROOM / 1e6, layers

    def check(self, space: Space) -> None:
        """Raises UserError where a model of the space has no form in such a file."""
        packaging = Packaging("gguf", quantize=self.numbers)
        check_format(packaging, self._source.architecture_of(self._source.nest.ta))
        for sub_model in space.forms():
            check_format(packaging, self._source.architecture_of(sub_model))


def file_sizes(
    source: Source,
    space: Space,
    budget: Budget,
    quantize: Sequence[str],
    packaging: Packaging | None,
    workload: Workload | None = None,
) -> list[FileSizes]:
    """The sizes of files of each type that a search may choose; none: it knows no files.

    Raises:
      UserError: files are limited or asked for that would not be written, or have no form.
    """
    is_gguf = packaging is not None and packaging.format == "gguf"
    if not quantize and budget.max_file_mb is None:
        return []
    if not is_gguf:
        field = f"max_file_mb={budget.max_file_mb}" if not quantize else f"quantize={quantize[0]!r}"
        raise UserError(f"{field} is of the files of llama.cpp; give --format=gguf")
    if source.plan.architecture.table_path is None:
        raise UserError(f"format='gguf' is for language models, not {source.config.model.a_noun}")
    # An engine times the files themselves.
    is_timed_in_files = workload is not None and workload.engine != JAX
    mends = {
        "max_mb": "limit max_file_mb or max_params",
        "max_ms": "give --latency_engine=llama.cpp",
    }
    for name, mend in mends.items():
        limit = getattr(budget, name)
        if limit is not None and quantize and not (name == "max_ms" and is_timed_in_files):
            raise UserError(
                f"{name}={limit:g} is of weights that are not quantised, and quantize is "
                f"{','.join(quantize)}; leave it out, or {mend}"
            )
    assert packaging is not None
    sizes = []
    for name in dict.fromkeys(quantize or (packaging.gguf_type,)):
        # Refused now, and not when models are written.
        if dataclasses.replace(packaging, quantize=name).is_k_quant:
            raise UserError(
                f"quantize={name!r} is of files whose bytes are known once llama.cpp's quantiser "
                "has written them; search by q8_0, q5_0, q4_0, and give "
                f"--quantize={name} to matta-extract"
            )
        files = FileSizes(source, name)
        files.check(space)
        sizes.append(files)
    return sizes
