"""Evaluation: scores of extracted models and of sub-models in place, samples, and the report of a run."""

from matta_jax.evaluation._evaluate import Evaluation as Evaluation
from matta_jax.evaluation._evaluate import evaluate as evaluate
from matta_jax.evaluation._report import Report as Report
from matta_jax.evaluation._report import report as report
from matta_jax.evaluation._sample import sample as sample
