"""AUC of scorers, beside what TF-IDF reaches on the same examples."""

from typing import Any

import jax
import numpy as np
import scipy.stats
import tqdm

from matta_jax.config import Config
from matta_jax.data import ExampleSet, glob_data, sequential_batches, split_data
from matta_jax.elastic import HELD_OUT, Model
from matta_jax.errors import UserError
from matta_jax.evaluation._tasks import CONFIDENCE, Outcome, Score, share
from matta_jax.models import targets_of

_RESAMPLES = 1000


class Auc:
    """The area under the ROC curve of two classes; beside it AUC loss (1 - AUC), accuracy and log loss.

    The interval is the percentile bootstrap's, each class drawn by itself.
    """

    def __init__(self, where: str, config: Config):
        if config.model.name != "scorer" or config.model.num_classes > 2:
            raise UserError(f"tasks='auc:{where}' is for scorers of two classes; this model is none")
        self.where = where
        examples = split_data(config, held_out=True) if where == HELD_OUT else glob_data(config, where)
        assert isinstance(examples, ExampleSet)
        self._examples, self.fingerprint = examples, examples.fingerprint
        if len(set(examples.labels)) < 2:
            raise UserError(f"tasks='auc:{where}': all examples are of class {examples.labels[0]}; AUC needs both")
        self.baselines = _tfidf(examples, config)

    def run(self, model: Model) -> Outcome:
        """Scores a model on all examples."""
        logits, labels = class_logits(model, self._examples), self._examples.labels
        value, interval = auc(labels, logits)
        right = (logits > 0) == (labels == 1)
        log_loss = float(np.mean(np.logaddexp(0, np.where(labels == 1, -logits, logits))))
        scores = [
            Score(f"auc:{self.where}", value, interval),
            Score(f"auc_loss:{self.where}", 1 - value, (1 - interval[1], 1 - interval[0])),
            share(f"accuracy:{self.where}", right),
            Score(f"log_loss:{self.where}", log_loss),
        ]
        return Outcome(scores, None, len(labels), self._examples.truncated)


def class_logits(model: Model, examples: ExampleSet, *, batch_size: int = 64) -> np.ndarray:
    """Returns the log-odds [n] of class 1."""

    @jax.jit
    def program(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        targets = targets_of(batch)
        logits = model.apply(params, targets.tokens_BT, targets.extras)
        return logits if logits.ndim == 1 else logits[:, 1] - logits[:, 0]

    batches = sequential_batches(examples, batch_size=batch_size)
    bar = tqdm.tqdm(batches, total=-(-len(examples) // batch_size), desc=f"auc {model.spec}", delay=2.0, disable=None)
    found = [jax.device_get(program(model.params, batch)) for batch in bar]
    return np.concatenate(found)[: len(examples)].astype(np.float64)


def auc(labels: np.ndarray, scores: np.ndarray) -> tuple[float, tuple[float, float]]:
    """The probability that an example of class 1 has the higher score, ties counted at half; and its interval."""
    classes = (scores[labels == 1], scores[labels == 0])
    if min(map(len, classes)) < 2:
        return _auc(*classes), (0.0, 1.0)
    found = scipy.stats.bootstrap(
        classes,
        lambda ones, zeros, axis: _auc(ones, zeros, axis=axis),
        n_resamples=_RESAMPLES,
        batch=100,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(_auc(*classes)), (float(found.low), float(found.high))


def _auc(ones: np.ndarray, zeros: np.ndarray, axis: int = -1) -> Any:
    """Mann and Whitney's U over the number of pairs."""
    return scipy.stats.mannwhitneyu(ones, zeros, axis=axis, method="asymptotic").statistic / (
        ones.shape[axis] * zeros.shape[axis]
    )


def _tfidf(examples: ExampleSet, config: Config) -> dict[str, float]:
    """The AUC of a logistic regression on TF-IDF, or of two texts' TF-IDF cosine, both fitted on training examples."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        return {}  # It comes with the extra `scorers`.
    training = split_data(config, held_out=False)
    assert isinstance(training, ExampleSet)
    if config.data.stream:
        training = training.part(0, config.train.num_steps * config.data.batch_size)
    try:
        if config.data.pair_field is None:
            vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
            known = vectorizer.fit_transform([one.text for one in training.examples])
            fitted = LogisticRegression(C=4.0, max_iter=1000).fit(known, training.labels)
            name = "TF-IDF, logistic regression"
            found = fitted.decision_function(vectorizer.transform([one.text for one in examples.examples]))
        else:
            vectorizer = TfidfVectorizer(sublinear_tf=True)
            vectorizer.fit([text for one in training.examples for text in (one.text, one.pair)])
            pair = [
                vectorizer.transform([getattr(one, side) for one in examples.examples]) for side in ("text", "pair")
            ]
            name, found = "TF-IDF cosine", np.asarray(pair[0].multiply(pair[1]).sum(axis=1))[:, 0]
    except ValueError:  # Texts without a word, or training examples of one class.
        return {}
    return {name: float(_auc(found[examples.labels == 1], found[examples.labels == 0]))}
