"""Checkpoints that carry their own truth, and let a reader take its own part of them.

Beside its arrays a checkpoint holds a JSON document: the config, the logical axes, and
fingerprints. An array is stored in *pieces*, cut wherever a sub-model may cut it (`nesting.units`):
one layer, one granule, one step of d_model. A piece is a chunk of the file and has a fingerprint of
its own, so that a sub-model reads its own bytes and can prove them.
"""

from matta_jax.checkpoints._orbax import Checkpoints as Checkpoints
from matta_jax.checkpoints._orbax import load_folder as load_folder
from matta_jax.checkpoints._orbax import on_one_device as on_one_device
from matta_jax.checkpoints._orbax import read_meta as read_meta
from matta_jax.checkpoints._orbax import save_folder as save_folder
from matta_jax.checkpoints._pieces import Units as Units
from matta_jax.checkpoints._pieces import fingerprint as fingerprint
from matta_jax.checkpoints._pieces import fingerprints as fingerprints
from matta_jax.checkpoints._source import Source as Source
from matta_jax.checkpoints._source import load_opt_state as load_opt_state
from matta_jax.checkpoints._source import open_source as open_source
from matta_jax.checkpoints._source import weights_fingerprint as weights_fingerprint
from matta_jax.checkpoints._steps import check_free as check_free
from matta_jax.checkpoints._steps import check_writable as check_writable
from matta_jax.checkpoints._steps import locate as locate
from matta_jax.checkpoints._steps import saved_steps as saved_steps
from matta_jax.checkpoints._steps import step_number as step_number
from matta_jax.checkpoints._stored import StoredArray as StoredArray
from matta_jax.checkpoints._stored import stored_arrays as stored_arrays
