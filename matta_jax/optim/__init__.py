"""Optimisers: the visible Optax chain of a run."""

from matta_jax.optim._chain import make_optimizer as make_optimizer
from matta_jax.optim._chain import make_schedule as make_schedule
from matta_jax.optim._chain import map_state as map_state
