"""Bits per byte and perplexity of any text."""

import weakref

from matta_jax.config import Config
from matta_jax.evaluation._tasks import Outcome, Score
from matta_jax.packages import Model
from matta_jax.selection.scoring import Loss, task_windows, text_loss


class Text:
    """The loss of a text, of which each task shows one figure; a model is run once for
    all of them.
    """

    def __init__(self, where: str, config: Config):
        self.where = where
        self._windows = task_windows(config, where)
        self.fingerprint = self._windows.fingerprint

        # A model that nobody needs any more is not kept in memory for its loss.
        self._losses: weakref.WeakKeyDictionary[Model, Loss] = weakref.WeakKeyDictionary()

    def loss(self, model: Model) -> Loss:
        """Returns a model's loss over the text."""
        if model not in self._losses:
            self._losses[model] = text_loss(model, self._windows)
        return self._losses[model]


class TextTask:
    """One figure of a text: `bits_per_byte` of UTF-8, or `perplexity` of a token."""

    def __init__(self, figure: str, text: Text):
        self._figure = figure
        self._text = text
        self.fingerprint = text.fingerprint
        # A trivial method's loss of a text is none that anyone compares with.
        self.baselines: dict[str, float] = {}

    def run(self, model: Model) -> Outcome:
        """Scores a model."""
        loss = self._text.loss(model)
        value = getattr(loss, self._figure)
        score = Score(f"{self._figure}:{self._text.where}", value)
        return Outcome([score], right=None, count=loss.num_tokens)
