"""Bits per byte and perplexity of any text."""

import weakref

from matta_jax.config import Config
from matta_jax.evaluation._tasks import Outcome, Score
from matta_jax.packages import Model
from matta_jax.selection.scoring import TextLoss, task_windows, text_loss


class Text:
    """The loss of a text, of which each task shows one figure; a model is run once for
    all of them.
    """

    def __init__(self, where: str, config: Config):
        self.where, self._windows = where, task_windows(config, where)
        self.fingerprint = self._windows.fingerprint
        self._known: weakref.WeakKeyDictionary[Model, TextLoss] = weakref.WeakKeyDictionary()

    def loss(self, model: Model) -> TextLoss:
        """Returns a model's loss over the text."""
        if model not in self._known:
            self._known[model] = text_loss(model, self._windows)
        return self._known[model]


class TextTask:
    """One figure of a text: `bits_per_byte` of UTF-8, or `perplexity` of a token."""

    baselines: dict[str, float] = {}  # noqa: RUF012  Of no task of this kind.

    def __init__(self, figure: str, text: Text):
        self._figure, self._text, self.fingerprint = figure, text, text.fingerprint

    def run(self, model: Model) -> Outcome:
        """Scores a model."""
        loss = self._text.loss(model)
        score = Score(f"{self._figure}:{self._text.where}", getattr(loss, self._figure))
        return Outcome([score], None, loss.num_tokens)
