"""Selection: the best sub-model within a budget; the loss of a text, by which it goes."""

from matta_jax.selection._latency import Workload as Workload
from matta_jax.selection._search import METHODS as METHODS
from matta_jax.selection._search import SearchResult as SearchResult
from matta_jax.selection._search import search as search
from matta_jax.selection._space import Budget as Budget
