"""Elastic extraction: sub-models become plain models. Imports no training code."""

from matta_jax.elastic._extract import Extracted as Extracted
from matta_jax.elastic._extract import extract as extract
from matta_jax.elastic._model import Model as Model
from matta_jax.elastic._model import load_in_place as load_in_place
from matta_jax.elastic._model import load_model as load_model
from matta_jax.elastic._source import load_opt_state as load_opt_state
from matta_jax.elastic._source import load_source as load_source
