"""Starts: what a run may begin from: an imported model, a grown or sorted one, and its Teachers.

The last two stand in modules of their own, `teacher` and `labelling`, because they read data.
"""

from matta_jax.starts._go_on import check_checkpoint as check_checkpoint
from matta_jax.starts._import import import_gguf as import_gguf
from matta_jax.starts._import import import_hf as import_hf
from matta_jax.starts._import import import_llama2c as import_llama2c
from matta_jax.starts._init import check_init as check_init
from matta_jax.starts._init import initial_opt_state as initial_opt_state
from matta_jax.starts._init import initial_params as initial_params
from matta_jax.starts._init import plain_run as plain_run
