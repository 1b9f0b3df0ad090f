"""Sharding: the mesh, the one rule table from logical axes to mesh axes, and placement."""

from matta_jax.sharding._collectives import Collective as Collective
from matta_jax.sharding._collectives import collectives as collectives
from matta_jax.sharding._mesh import RULES as RULES
from matta_jax.sharding._mesh import batch_sharding as batch_sharding
from matta_jax.sharding._mesh import check_mesh as check_mesh
from matta_jax.sharding._mesh import gather_for_compute as gather_for_compute
from matta_jax.sharding._mesh import loss_layout as loss_layout
from matta_jax.sharding._mesh import make_mesh as make_mesh
from matta_jax.sharding._mesh import param_shardings as param_shardings
from matta_jax.sharding._mesh import place_batch as place_batch
from matta_jax.sharding._mesh import replicated as replicated
