"""Sharding: the mesh, the one rule table from logical axes to mesh axes, and placement; processes
that share a run.
"""

from matta_jax.sharding._collectives import KINDS as KINDS
from matta_jax.sharding._collectives import Collective as Collective
from matta_jax.sharding._collectives import collectives as collectives
from matta_jax.sharding._mesh import RULES as RULES
from matta_jax.sharding._mesh import batch_sharding as batch_sharding
from matta_jax.sharding._mesh import check_mesh as check_mesh
from matta_jax.sharding._mesh import loss_layout as loss_layout
from matta_jax.sharding._mesh import make_mesh as make_mesh
from matta_jax.sharding._mesh import own_rows as own_rows
from matta_jax.sharding._mesh import param_shardings as param_shardings
from matta_jax.sharding._mesh import place as place
from matta_jax.sharding._mesh import place_batch as place_batch
from matta_jax.sharding._mesh import placement as placement
from matta_jax.sharding._mesh import replicated as replicated
from matta_jax.sharding._placement import ONE_DEVICE as ONE_DEVICE
from matta_jax.sharding._placement import Layout as Layout
from matta_jax.sharding._placement import Placement as Placement
from matta_jax.sharding._processes import any_process as any_process
from matta_jax.sharding._processes import check_agreement as check_agreement
from matta_jax.sharding._processes import is_first as is_first
from matta_jax.sharding._processes import join_processes as join_processes
from matta_jax.sharding._processes import part as part
from matta_jax.sharding._processes import wait_for_all as wait_for_all
from matta_jax.sharding._processes import wait_for_verdict as wait_for_verdict
from matta_jax.sharding._topologies import CHIPS as CHIPS
from matta_jax.sharding._topologies import Chip as Chip
from matta_jax.sharding._topologies import collective_seconds as collective_seconds
from matta_jax.sharding._topologies import topology_devices as topology_devices
