"""Elastic: sub-models become plain models, each with a certificate."""

from matta_jax.elastic._extract import Extracted as Extracted
from matta_jax.elastic._extract import extract as extract
from matta_jax.elastic._extract import verify as verify
