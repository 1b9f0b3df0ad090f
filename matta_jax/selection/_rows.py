"""What a search knows of each model that it scored."""

import dataclasses
from collections.abc import Callable

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.selection.scoring import TextLoss


@dataclasses.dataclass
class Row:
    """One model that was scored.

    Attributes:
      spec: of the model.
      kind: `searched`, the name of a pattern, `student` or `ta`.
      parameters, mb, flops_per_token: what it costs.
      predicted_ms, ms: predicted and measured latency, where one was asked for.
      predicted: loss by the additive predictor, where it was used; nats per token.
      loss: on the part of the corpus; nats per token.
      bits_per_byte: on the whole corpus, of the models that were verified.
      within: whether it keeps within the budget, as measured.
      dominated: whether another scored model costs no more of anything and is better.
      pick: whether it is the result.
    """

    spec: str
    kind: str
    parameters: int
    mb: float
    flops_per_token: int
    predicted_ms: float | None = None
    ms: float | None = None
    predicted: float | None = None
    loss: float = float("nan")
    bits_per_byte: float | None = None
    within: bool = True
    dominated: bool = False
    pick: bool = False

    @property
    def is_pattern(self) -> bool:
        """Whether it is a baseline: a named pattern or a uniform width."""
        return self.kind not in ("searched", "student", "ta")

    def dominates(self, row: "Row") -> bool:
        """Whether this model costs no more of anything than another, and is better."""
        if self is row:
            return False
        # A verified model is judged by verified ones: a loss on a part of the corpus is less sure.
        if row.bits_per_byte is not None and self.bits_per_byte is None:
            return False

        quality = (self.loss, row.loss)
        if self.bits_per_byte is not None and row.bits_per_byte is not None:
            quality = (self.bits_per_byte, row.bits_per_byte)
        pairs = [
            (self.parameters, row.parameters),
            (self.flops_per_token, row.flops_per_token),
            quality,
        ]
        is_no_worse = all(a <= b for a, b in pairs)
        is_better = any(a < b for a, b in pairs)
        return is_no_worse and is_better


class ScoreFile:
    """Scores that outlast the process, one line each, for a checkpoint and a corpus."""

    def __init__(self, path: storage.Path, checkpoint: str, corpus: str):
        self._path = path
        self._about = {"checkpoint": checkpoint, "corpus": corpus}
        self._losses: dict[tuple[str, int], TextLoss] = {}
        for line in storage.recover_lines(path):
            try:
                record = storage.parse_json(line)
            except ValueError:
                raise UserError(f"{str(path)!r} is damaged; remove it, and search again") from None
            # The folder may hold scores of an older search: of another checkpoint or corpus.
            if all(record.get(name) == value for name, value in self._about.items()):
                loss = TextLoss(record["nats"], record["num_tokens"], record["num_bytes"])
                self._losses[record["spec"], record["windows"]] = loss

    def get(self, spec: str, num_windows: int, compute: Callable[[], TextLoss]) -> TextLoss:
        """The loss of a model on so many windows: as it is known, or computed and written down."""
        key = (spec, num_windows)
        if key not in self._losses:
            loss = compute()
            self._losses[key] = loss
            # Each at once: a search that is killed loses the score that it was at, and no other.
            record = {**self._about, "spec": spec, "windows": num_windows}
            record |= dataclasses.asdict(loss)
            storage.append_line(self._path, storage.json_text(record))
        return self._losses[key]
