"""AUC of scorers, beside what methods without a model reach on the same examples."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import scipy.stats

from matta_jax.config import Config
from matta_jax.data import ExampleSet, glob_data, sequential_batches, split_data
from matta_jax.errors import UserError, shorten
from matta_jax.evaluation._likelihood import warn_of_left_out
from matta_jax.evaluation._tasks import CONFIDENCE, Outcome, Score, share
from matta_jax.models import plan_of
from matta_jax.packages import Model
from matta_jax.reporting import progress
from matta_jax.selection.scoring import HELD_OUT
from matta_jax.sharding import place_rows

# Of the bootstrap; all at once would hold a thousand copies of the scores.
_RESAMPLES = 1000
_RESAMPLES_AT_ONCE = 100

# Of training examples and others: the scores of these.
_Method = Callable[[ExampleSet, ExampleSet], np.ndarray]


class Auc:
    """The area under the ROC curve of two classes; beside it AUC loss (1 - AUC), accuracy and log
    loss.

    The interval is the percentile bootstrap's, each class drawn by itself.
    """

    def __init__(self, where: str, config: Config):
        num_classes = plan_of(config).architecture.fixed.get("classes", 0)
        if num_classes not in (1, 2):
            raise UserError(
                f"tasks='auc:{where}' is for scorers of two classes; this model is none"
            )
        self.where = where
        if where == HELD_OUT:
            examples = split_data(config, held_out=True)
        else:
            examples = glob_data(config, where)
        assert isinstance(examples, ExampleSet)
        self.fingerprint = examples.fingerprint
        examples, self._left_out = _with_tokens(examples, f"tasks='auc:{where}'")
        self._examples = examples

        if len(set(examples.labels)) < 2:
            raise UserError(
                f"tasks='auc:{where}': all examples are of class {examples.labels[0]}; AUC needs "
                "both"
            )
        self.baselines = _baselines(examples, config)

    def run(self, model: Model) -> Outcome:
        """Scores a model on all examples."""
        labels = self._examples.labels
        logits = class_logits(model, self._examples)
        value, (low, high) = auc(labels, logits)

        right = (logits > 0) == (labels == 1)
        # -log p of the label, with p of class 1 the sigmoid of the logit.
        losses = np.logaddexp(0, np.where(labels == 1, -logits, logits))
        scores = [
            Score(f"auc:{self.where}", value, (low, high)),
            Score(f"auc_loss:{self.where}", 1 - value, (1 - high, 1 - low)),
            share(f"accuracy:{self.where}", right),
            Score(f"log_loss:{self.where}", float(np.mean(losses))),
        ]
        return Outcome(scores, None, len(labels), self._examples.truncated, self._left_out)


def _with_tokens(examples: ExampleSet, what: str) -> tuple[ExampleSet, int]:
    """The examples that a model has something to read of, and how many others there are."""
    chosen = []
    reasons = {}
    for i, (example, ids) in enumerate(zip(examples.examples, examples.ids, strict=True)):
        # Features stand in for an empty text.
        if len(ids) or example.dense or example.categorical:
            chosen.append(i)
        else:
            reasons[f"example {i + 1}"] = f"the text {shorten(example.text)} has no tokens"
    warn_of_left_out(what, reasons, len(chosen))
    if not reasons:
        return examples, 0
    subset = dataclasses.replace(
        examples,
        examples=[examples.examples[i] for i in chosen],
        ids=[examples.ids[i] for i in chosen],
    )
    return subset, len(reasons)


def class_logits(model: Model, examples: ExampleSet, *, batch_size: int = 64) -> np.ndarray:
    """Returns the log-odds [n] of class 1."""

    @jax.jit
    def program(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        logits = model.apply(params, model.schema.targets(batch).inputs)
        if logits.ndim == 1:
            return logits
        return logits[:, 1] - logits[:, 0]

    batches = sequential_batches(examples, batch_size=batch_size)
    num_batches = -(-len(examples) // batch_size)
    title = f"auc {model.spec}"
    shown = progress(batches, desc=title, unit="batches", total=num_batches)
    logits = [
        jax.device_get(program(model.params, place_rows(batch, model.mesh))) for batch in shown
    ]

    # Rows that fill the last batch go.
    return np.concatenate(logits)[: len(examples)].astype(np.float64)


def auc(labels: np.ndarray, scores: np.ndarray) -> tuple[float, tuple[float, float]]:
    """The probability that an example of class 1 has the higher score, ties counted at half; and
    its interval.
    """
    ones = scores[labels == 1]
    zeros = scores[labels == 0]

    # A class of one example cannot be drawn anew.
    if min(len(ones), len(zeros)) < 2:
        return _auc(ones, zeros), (0.0, 1.0)

    interval = scipy.stats.bootstrap(
        (ones, zeros),
        lambda ones, zeros, axis: _auc(ones, zeros, axis=axis),
        n_resamples=_RESAMPLES,
        batch=_RESAMPLES_AT_ONCE,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(_auc(ones, zeros)), (float(interval.low), float(interval.high))


def _auc(ones: np.ndarray, zeros: np.ndarray, axis: int = -1) -> Any:
    """Mann and Whitney's U over the number of pairs."""
    test = scipy.stats.mannwhitneyu(ones, zeros, axis=axis, method="asymptotic")
    num_pairs = ones.shape[axis] * zeros.shape[axis]
    return test.statistic / num_pairs


def _baselines(examples: ExampleSet, config: Config) -> dict[str, float]:
    """The AUC of methods without a model, fitted on training examples.

    Of one text: logistic regression on TF-IDF. Of two: their TF-IDF cosine. Of features: logistic
    regression.
    """
    # scikit-learn comes with the extra `scorers`.
    try:
        import sklearn  # noqa: F401
    except ImportError:
        return {}

    training = split_data(config, held_out=False)
    assert isinstance(training, ExampleSet)
    if config.data.stream:
        # Of data without an end, what the model sees.
        num_examples = config.train.num_steps * config.data.batch_size
        training = training.part(0, num_examples)

    methods: dict[str, _Method] = {}
    if config.data.pair_field is None:
        methods["TF-IDF, logistic regression"] = _text_scores
    else:
        methods["TF-IDF cosine"] = _pair_scores
    fixed = plan_of(config).architecture.fixed
    if fixed.get("dense") or fixed.get("categories"):
        methods["features, logistic regression"] = _feature_scores

    baselines = {}
    for name, method in methods.items():
        try:
            scores = method(training, examples)
        except ValueError:
            # Texts without a word, or training examples of one class.
            continue
        ones = scores[examples.labels == 1]
        zeros = scores[examples.labels == 0]
        baselines[name] = float(_auc(ones, zeros))
    return baselines


def _text_scores(training: ExampleSet, examples: ExampleSet) -> np.ndarray:
    """Of a logistic regression on the words and pairs of words of one text [n]."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    training_vectors = vectorizer.fit_transform(_texts(training))
    regression = LogisticRegression(C=4.0, max_iter=1000)
    regression.fit(training_vectors, training.labels)
    return regression.decision_function(vectorizer.transform(_texts(examples)))


def _pair_scores(training: ExampleSet, examples: ExampleSet) -> np.ndarray:
    """Of the cosine between the words of two texts [n]; nothing learns from labels."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True)
    vectorizer.fit(_texts(training) + _texts(training, "pair"))
    text_vectors = vectorizer.transform(_texts(examples))
    pair_vectors = vectorizer.transform(_texts(examples, "pair"))
    cosines = text_vectors.multiply(pair_vectors).sum(axis=1)
    return np.asarray(cosines)[:, 0]


def _feature_scores(training: ExampleSet, examples: ExampleSet) -> np.ndarray:
    """Of a logistic regression on dense features and categories [n]."""
    from sklearn.linear_model import LogisticRegression

    regression = LogisticRegression(max_iter=1000)
    regression.fit(_features(training), training.labels)
    return regression.decision_function(_features(examples))


def _texts(examples: ExampleSet, side: str = "text") -> list[str]:
    """All first texts, or with side `pair` all second ones."""
    return [getattr(example, side) for example in examples.examples]


def _features(examples: ExampleSet) -> np.ndarray:
    return np.concatenate([examples.dense, examples.one_hot], axis=1)
