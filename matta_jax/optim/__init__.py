"""Optimisers: blocked distributed Shampoo, and the Optax chain of a run."""

from matta_jax.optim._blocks import MatrixView as MatrixView
from matta_jax.optim._chain import make_optimizer as make_optimizer
from matta_jax.optim._chain import make_schedule as make_schedule
from matta_jax.optim._chain import map_state as map_state
from matta_jax.optim._chain import matrix_views as matrix_views
from matta_jax.optim._chain import optimizer_of as optimizer_of
from matta_jax.optim._chain import shampoo_advice as shampoo_advice
from matta_jax.optim._chain import state_shardings as state_shardings
from matta_jax.optim._chain import weights_of as weights_of
from matta_jax.optim._diagnostics import diagnostics as diagnostics
from matta_jax.optim._distribution import block_sharding as block_sharding
from matta_jax.optim._muon import orthogonalise_blocks as orthogonalise_blocks
from matta_jax.optim._plan import blocking_of as blocking_of
from matta_jax.optim._roots import inverse_pth_root as inverse_pth_root
from matta_jax.optim._shampoo import scale_by_shampoo as scale_by_shampoo
from matta_jax.optim._slice import slice_shampoo as slice_shampoo
from matta_jax.optim._state import BlockState as BlockState
from matta_jax.optim._state import ShampooState as ShampooState
from matta_jax.optim._state import find_shampoo as find_shampoo
