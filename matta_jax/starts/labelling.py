"""Labels of a Teacher, captured once for any number of runs on the same windows.

Shape letters: B batch, T sequence, N tokens, K top k, V vocab.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from matta_jax import storage
from matta_jax.config import Config, MeshConfig
from matta_jax.data import LabelHeader, Windows, split_data, write_header, write_labels
from matta_jax.errors import UserError
from matta_jax.models import Inputs, logits
from matta_jax.nesting import Tree
from matta_jax.packages import Model, check_place
from matta_jax.reporting import progress
from matta_jax.sharding import (
    check_agreement,
    fitting_mesh,
    is_first,
    map_rows,
    place_rows,
    row_shards,
    wait_for_all,
)
from matta_jax.starts.teacher import check_teacher, open_teacher
from matta_jax.tokenizers import fitting_tokenizer, tokenizer_digest

_CHUNK = 256  # Tokens whose logits exist at once.
_PER_FILE = 512


@dataclasses.dataclass(frozen=True)
class Labelled:
    """What `label` wrote.

    Attributes:
      path: the folder.
      header: of the labels.
      written: files that this process wrote now; others were there, or are other processes'.
    """

    path: storage.Path
    header: LabelHeader
    written: int


def label(  # noqa: PLR0913  Keyword-only: the settings of a public call.
    config: Config,
    teacher: str,
    output: str | storage.Path,
    *,
    top_k: int = 64,
    temperature: float = 1.0,
    batch_size: int = 16,
    mesh: MeshConfig | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Labelled:
    """Writes a Teacher's top-k log-probabilities of a run's training windows, for `teacher.labels`.

    The Teacher computes in the run's compute type, as one that runs along does. Stopped at any
    point and called again, it goes on with the files that are missing. Several
    processes (`jax.distributed`) share the files.

    Args:
      config: of the run that will learn: its data and vocabulary.
      teacher: folder of an extracted or imported model, or a run D[@STEP] for its TA.
      output: folder for the labels, which all processes see.
      top_k: ids to keep of each token's distribution.
      temperature: T at which log-probabilities are captured.
      batch_size: windows of a batch, on each of the devices that split its rows.
      mesh: of this process's devices; None: rows over all of them.
      log: takes progress lines.

    Raises:
      UserError: a Teacher that cannot teach this run, a bad top_k, a mesh that does not fit the
        devices or the Teacher, or an output that cannot be written or holds labels of another kind.

    Examples:
      >>> matta_jax.label(config, "models/mix", "labels", top_k=8).path.name
      'labels'
    """
    folder = check_place("output", output)
    if config.model.reads_examples:
        raise UserError(
            f"model.name={config.model.name!r}: labels are of language models; name the Teacher by "
            "teacher.model"
        )
    opened = open_teacher(teacher, "teacher")
    check_teacher(opened, config, "teacher")
    devices = fitting_mesh(mesh or MeshConfig(), opened.abstract, opened.axes)
    _check_settings(top_k, temperature, batch_size, opened.architecture.vocab_size)

    tokenizer = fitting_tokenizer(config.data.tokenizer, config.model.vocab_size)
    # The very windows that a run of this config trains on.
    windows = split_data(config, tokenizer, held_out=False)
    assert isinstance(windows, Windows)
    header = LabelHeader(
        teacher=opened.origin,
        vocab_size=opened.architecture.vocab_size,
        tokenizer=tokenizer_digest(tokenizer),
        temperature=float(temperature),
        top_k=top_k,
        seq_len=config.data.seq_len,
        num_windows=len(windows),
        windows=windows.fingerprint,
        per_file=_PER_FILE,
        compute_dtype=config.model.compute_dtype,
    )
    check_agreement({"the labels' header": repr(header), "output": str(folder)})
    if is_first():
        _check_space(folder, header)
        write_header(folder, header)
    # A process may write its files once it sees the folder with its header.
    wait_for_all("matta_jax/labels")

    missing = _missing_files(folder, header)
    log(f"{header.num_windows} windows in {header.num_files} files, {len(missing)} to write here")
    log(
        f"labels of {header.num_windows:,} windows: {_size_text(header.num_bytes)} at "
        f"{header.top_k} tokens of each distribution"
    )
    # The Teacher is loaded only where there is something to label.
    if missing:
        capture = _Capture(opened.load(devices), header, batch_size)
        _write_files(folder, header, missing, capture, windows, f"labelling by {opened.where}")

    wait_for_all("matta_jax/labelled")
    return Labelled(folder, header, len(missing))


def _check_space(folder: storage.Path, header: LabelHeader) -> None:
    """Raises UserError where the disk has no room for the files that are not there yet, before
    hours go into them.
    """
    missing = [i for i in range(header.num_files) if not header.file(folder, i).is_file()]
    num_windows = sum(len(header.windows_of(i)) for i in missing)
    num_bytes = header.num_bytes * num_windows // max(header.num_windows, 1)
    with storage.writing("output", folder, "name another"):
        free = storage.free_bytes(folder)
    if num_bytes > free:
        raise UserError(
            f"output={str(folder)!r} needs {_size_text(num_bytes)} for the labels of "
            f"{num_windows:,} windows, and its disk has {_size_text(free)} free; make room, name "
            "another, or lower --max_windows or --top_k"
        )


def _size_text(num_bytes: int) -> str:
    """As 2.3 GB."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1e3:.1f} kB"


def _check_settings(top_k: int, temperature: float, batch_size: int, vocab_size: int) -> None:
    if not 1 <= top_k <= vocab_size:
        raise UserError(f"top_k={top_k} must be from 1 to the vocabulary's {vocab_size}")
    if not 0 < temperature < float("inf"):
        raise UserError(f"temperature={temperature} must be greater than 0")
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} must be at least 1")


def _missing_files(folder: storage.Path, header: LabelHeader) -> list[int]:
    """The indices of this process's files that are not there yet; processes take turns."""
    indices = range(jax.process_index(), header.num_files, jax.process_count())
    return [i for i in indices if not header.file(folder, i).is_file()]


class _Capture:
    """The Teacher on its devices, each with its rows of a batch."""

    def __init__(self, model: Model, header: LabelHeader, batch_size: int):
        self._model = dataclasses.replace(model, compute_dtype=header.compute_dtype)
        self._batch_size = batch_size * row_shards(model.mesh)
        self._program = jax.jit(_capture_program(self._model, header))

    def rows(self, windows: Windows, indices: range) -> Iterator[tuple[np.ndarray, ...]]:
        """Yields tokens [T + 1], ids [T, k], log-probabilities [T, k] and tail [T] of
        each window.
        """
        for start in range(0, len(indices), self._batch_size):
            batch = indices[start : start + self._batch_size]
            tokens = [windows[i]["tokens"] for i in batch]
            # One program for all batches: the last is filled up with its first window.
            fill = tokens[:1] * (self._batch_size - len(tokens))
            filled = np.stack(tokens + fill)

            inputs = place_rows({"tokens": filled[:, :-1]}, self._model.mesh)
            ids, log_probs, tail = jax.device_get(self._program(self._model.params, inputs))
            for row, window_tokens in enumerate(tokens):
                yield window_tokens, ids[row], log_probs[row], tail[row, :, 0]


def _capture_program(
    model: Model, header: LabelHeader
) -> Callable[[Tree, Inputs], tuple[jax.Array, ...]]:
    """The function of the Teacher's weights and inputs that `top_k_log_probs` is of, each
    [B, T, ...].
    """
    top_k, T = header.top_k, header.temperature

    def capture(params: Tree, inputs: Inputs) -> tuple[jax.Array, ...]:
        hidden_ND = model.apply(params, inputs)
        table = model.head(params)

        def of_token(hidden_D: jax.Array) -> tuple[jax.Array, ...]:
            return top_k_log_probs(logits(hidden_D[None], table), top_k, T)

        parts = map_rows(of_token, hidden_ND, model.mesh, at_once=_CHUNK)
        return tuple(part.reshape(*inputs["tokens"].shape, -1) for part in parts)

    return capture


def _write_files(
    folder: storage.Path,
    header: LabelHeader,
    files: Sequence[int],
    capture: _Capture,
    windows: Windows,
    title: str,
) -> None:
    """Writes the label files of these indices, under a progress bar."""
    for i in progress(files, desc=title, unit="files", delay=0.0):
        with storage.writing_by_library("output", folder, "make room, and start again"):
            rows = capture.rows(windows, header.windows_of(i))
            write_labels(header.file(folder, i), header, rows)


def top_k_log_probs(
    z_NV: jax.Array, top_k: int, T: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the k most likely ids [N, k], falling, their log-probabilities [N, k] at T, and the
    log-mass [N, 1] of all others: -inf where there are none."""
    log_p_NV = jax.nn.log_softmax(z_NV / T, axis=-1)
    log_probs_NK, ids_NK = jax.lax.top_k(log_p_NV, top_k)
    # Summed by itself: as 1 - (sum of the top k) it would lose all its digits when it is small.
    others_NV = log_p_NV.at[jnp.arange(len(z_NV))[:, None], ids_NK].set(-jnp.inf)
    tail_N1 = jax.nn.logsumexp(others_NV, axis=-1, keepdims=True)
    return ids_NK, log_probs_NK, tail_N1
