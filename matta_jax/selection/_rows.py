"""What a search knows of each model that it scored."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.selection.scoring import Loss

# Of nats, tokens and bytes: larger whole numbers than a text has, which no float may hold.
_TOO_LARGE = 2**63


@dataclasses.dataclass
class Row:
    """One model that was scored.

    Attributes:
      spec: of the model.
      kind: `searched`, the name of a pattern, `student` or `ta`.
      parameters, mb, flops_per_token: what it costs.
      predicted_ms, ms: predicted and measured latency, where one was asked for.
      ms_spread: half of what lies between the quartiles of the measured ones, as a share of `ms`.
      predicted: loss by the additive predictor, where it was used; nats per token or example.
      loss: on the part of the corpus; nats per token or example.
      verified: on the whole corpus, of the models that were verified: bits per byte of a text, nats
        per example.
      within: whether it keeps within the budget, as measured.
      dominated: whether another scored model costs no more of anything and is better.
      pick: whether it is the result.
      numbers: the type of its matrices in a GGUF file, in which it was scored; None: the run's own.
      file_mb: megabytes of that file.
    """

    spec: str
    kind: str
    parameters: int
    mb: float
    flops_per_token: int
    predicted_ms: float | None = None
    ms: float | None = None
    ms_spread: float | None = None
    predicted: float | None = None
    loss: float = float("nan")
    verified: float | None = None
    within: bool = True
    dominated: bool = False
    pick: bool = False
    numbers: str | None = None
    file_mb: float | None = None

    @property
    def is_pattern(self) -> bool:
        """Whether it is a baseline: a named pattern or a uniform width."""
        return self.kind not in ("searched", "student", "ta")

    def dominates(self, row: "Row") -> bool:
        """Whether this model costs no more of anything than another, and is better."""
        if self is row:
            return False
        # A verified model is judged by verified ones: a loss on a part of the corpus is less sure.
        if row.verified is not None and self.verified is None:
            return False

        quality = (self.loss, row.loss)
        if self.verified is not None and row.verified is not None:
            quality = (self.verified, row.verified)
        pairs = [
            (self.parameters, row.parameters),
            (self.flops_per_token, row.flops_per_token),
            (self.file_mb or 0.0, row.file_mb or 0.0),
            quality,
        ]
        is_no_worse = all(a <= b for a, b in pairs)
        is_better = any(a < b for a, b in pairs)
        return is_no_worse and is_better


class ScoreFile:
    """Scores that outlast the process, one line each, for a checkpoint and a corpus.

    Raises:
      UserError: the file cannot be read or written, or a line of it is no score.
    """

    def __init__(
        self, path: storage.Path, checkpoint: str, corpus: str, *, of_examples: bool = False
    ):
        self._path = path
        self._file = storage.GrowingFile(path)
        self._of_examples = of_examples
        self._about = {"checkpoint": checkpoint, "corpus": corpus}
        self._losses: dict[tuple[str, int], Loss] = {}
        try:
            # The end that a killed search left is cut off in the file too.
            with self._writing():
                lines = storage.recover_lines(path)
            scores = [self._read(line) for line in lines]
        except ValueError:
            raise UserError(f"{str(path)!r} is damaged; remove it, and search again") from None
        for score in scores:
            # The folder may hold scores of an older search: of another checkpoint or corpus.
            if score.about == self._about:
                self._losses[score.spec, score.num_windows] = score.loss

    def get(self, spec: str, num_windows: int, compute: Callable[[], Loss]) -> Loss:
        """The loss of a model on so many windows: as it is known, or computed and written down.

        Raises:
          UserError: the loss is no number to rank by, or cannot be written.
        """
        key = (spec, num_windows)
        if key not in self._losses:
            loss = compute()
            # Models are compared by it: beside NaN every order is wrong.
            if not _is_loss(loss):
                raise UserError(
                    f"the loss of {spec} is {loss.nats} nats over {loss.num_tokens} tokens, by "
                    "which models cannot be ranked; search another step, or another corpus"
                )
            self._losses[key] = loss
            # Each at once: a search that is killed loses the score that it was at, and no other; in
            # a bucket those of the last seconds.
            record = {**self._about, "spec": spec, "windows": num_windows}
            record |= dataclasses.asdict(loss)
            with self._writing():
                self._file.append(storage.json_text(record))
        return self._losses[key]

    def close(self) -> None:
        """Writes what a bucket has not yet. Raises UserError where it cannot."""
        with self._writing():
            self._file.flush()

    def _read(self, line: str) -> "_Score":
        score = _Score.of(storage.parse_json(line))
        # Bytes are of texts alone.
        if bool(score.loss.num_bytes) == self._of_examples:
            raise ValueError("no score")
        return score

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        mend = "make room or name another, and search again: what was scored is kept"
        return storage.writing("output", self._path, mend)


@dataclasses.dataclass(frozen=True)
class _Score:
    """A line of the file."""

    about: dict[str, str]
    spec: str
    num_windows: int
    loss: Loss

    @classmethod
    def of(cls, record: Any) -> "_Score":
        """Raises ValueError when a record is no score: others may have written to the file."""
        if not isinstance(record, dict):
            raise ValueError("no score")

        def value(name: str) -> Any:
            return record.get(name)

        about = {name: value(name) for name in ("checkpoint", "corpus")}
        spec, num_windows = value("spec"), value("windows")
        loss = Loss(value("nats"), value("num_tokens"), value("num_bytes"))

        texts = (*about.values(), spec)
        is_score = all(isinstance(text, str) for text in texts) and _is_count(num_windows)
        if not is_score or not _is_loss(loss):
            raise ValueError("no score")
        return cls(about, spec, num_windows, loss)


def _is_loss(loss: Loss) -> bool:
    """Whether the figures of a loss are such as a text can have."""
    # Written so that it refuses NaN too.
    is_nats = storage.is_number(loss.nats) and 0 <= loss.nats < _TOO_LARGE
    # Of examples no bytes are counted.
    has_bytes = loss.num_bytes == 0 or _is_count(loss.num_bytes)
    return is_nats and _is_count(loss.num_tokens) and has_bytes


def _is_count(value: Any) -> bool:
    return storage.is_whole(value) and 0 < value < _TOO_LARGE
