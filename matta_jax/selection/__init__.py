"""Selection: the best sub-model within a budget; the loss of a text, by which it goes."""

from matta_jax.selection._search import METHODS as METHODS
from matta_jax.selection._search import SearchResult as SearchResult
from matta_jax.selection._search import search as search
from matta_jax.selection._space import Budget as Budget
from matta_jax.selection._workload import JAX as JAX
from matta_jax.selection._workload import LATENCY_ENGINES as LATENCY_ENGINES
from matta_jax.selection._workload import Workload as Workload
from matta_jax.selection._workload import length_of_run as length_of_run
