"""Evaluation: scores of extracted models and of sub-models in place, generated text, and the report
of a run.
"""

from matta_jax.evaluation._cascade import cascade_report as cascade_report
from matta_jax.evaluation._comparison import Comparison as Comparison
from matta_jax.evaluation._comparison import Evaluation as Evaluation
from matta_jax.evaluation._evaluate import compare as compare
from matta_jax.evaluation._evaluate import evaluate as evaluate
from matta_jax.evaluation._likelihood import Likelihood as Likelihood
from matta_jax.evaluation._likelihood import Request as Request
from matta_jax.evaluation._likelihood import encode_request as encode_request
from matta_jax.evaluation._likelihood import likelihoods as likelihoods
from matta_jax.evaluation._report import Report as Report
from matta_jax.evaluation._report import report as report
