"""AUC of scorers, beside what methods without a model reach on the same examples."""

from typing import Any

import jax
import numpy as np
import scipy.stats
import tqdm

from matta_jax.config import Config
from matta_jax.data import ExampleSet, glob_data, sequential_batches, split_data
from matta_jax.errors import UserError
from matta_jax.evaluation._tasks import CONFIDENCE, Outcome, Score, share
from matta_jax.models import targets_of
from matta_jax.packages import Model
from matta_jax.selection.scoring import HELD_OUT

_RESAMPLES = 1000


class Auc:
    """The area under the ROC curve of two classes; beside it AUC loss (1 - AUC), accuracy and log
    loss.

    The interval is the percentile bootstrap's, each class drawn by itself.
    """

    def __init__(self, where: str, config: Config):
        if config.model.name != "scorer" or config.model.num_classes > 2:
            raise UserError(
                f"tasks='auc:{where}' is for scorers of two classes; this model is none"
            )
        self.where = where
        examples = (
            split_data(config, held_out=True) if where == HELD_OUT else glob_data(config, where)
        )
        assert isinstance(examples, ExampleSet)
        self._examples, self.fingerprint = examples, examples.fingerprint
        if len(set(examples.labels)) < 2:
            raise UserError(
                f"tasks='auc:{where}': all examples are of class {examples.labels[0]}; AUC needs "
                "both"
            )
        self.baselines = _baselines(examples, config)

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
    bar = tqdm.tqdm(
        batches,
        total=-(-len(examples) // batch_size),
        desc=f"auc {model.spec}",
        delay=2.0,
        disable=None,
    )
    found = [jax.device_get(program(model.params, batch)) for batch in bar]
    return np.concatenate(found)[: len(examples)].astype(np.float64)


def auc(labels: np.ndarray, scores: np.ndarray) -> tuple[float, tuple[float, float]]:
    """The probability that an example of class 1 has the higher score, ties counted at half; and
    its interval.
    """
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


def _baselines(examples: ExampleSet, config: Config) -> dict[str, float]:
    """The AUC of methods without a model, fitted on training examples.

    Of one text: logistic regression on TF-IDF. Of two: their TF-IDF cosine. Of features: logistic
    regression.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        return {}  # It comes with the extra `scorers`.
    training = split_data(config, held_out=False)
    assert isinstance(training, ExampleSet)
    if config.data.stream:
        training = training.part(0, config.train.num_steps * config.data.batch_size)

    def texts(of: ExampleSet, side: str) -> list[str]:
        return [getattr(one, side) for one in of.examples]

    def on_text() -> np.ndarray:
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        known = vectorizer.fit_transform(texts(training, "text"))
        fitted = LogisticRegression(C=4.0, max_iter=1000).fit(known, training.labels)
        return fitted.decision_function(vectorizer.transform(texts(examples, "text")))

    def of_pair() -> np.ndarray:
        vectorizer = TfidfVectorizer(sublinear_tf=True).fit(
            texts(training, "text") + texts(training, "pair")
        )
        text, pair = (vectorizer.transform(texts(examples, side)) for side in ("text", "pair"))
        return np.asarray(text.multiply(pair).sum(axis=1))[:, 0]

    def on_features() -> np.ndarray:
        known, asked = (
            np.concatenate([of.dense, of.one_hot], axis=1) for of in (training, examples)
        )
        return (
            LogisticRegression(max_iter=1000).fit(known, training.labels).decision_function(asked)
        )

    methods = (
        {"TF-IDF, logistic regression": on_text}
        if config.data.pair_field is None
        else {"TF-IDF cosine": of_pair}
    )
    if config.model.num_dense or config.model.categories:
        methods["features, logistic regression"] = on_features
    found = {}
    for name, method in methods.items():
        try:
            scores = method()
        except ValueError:  # Texts without a word, or training examples of one class.
            continue
        found[name] = float(_auc(scores[examples.labels == 1], scores[examples.labels == 0]))
    return found
