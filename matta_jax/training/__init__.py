"""Training: state, step, loop and metrics."""

from matta_jax.training._compile_check import CompileReport as CompileReport
from matta_jax.training._compile_check import compile_check as compile_check
from matta_jax.training._cost import step_flops_of as step_flops_of
from matta_jax.training._cost import step_flops_per_token as step_flops_per_token
from matta_jax.training._dry_run import compile_step as compile_step
from matta_jax.training._dry_run import dry_run as dry_run
from matta_jax.training._held_out import next_window as next_window
from matta_jax.training._loop import TrainResult as TrainResult
from matta_jax.training._loop import train as train
from matta_jax.training._state import Setup as Setup
from matta_jax.training._state import TrainState as TrainState
from matta_jax.training._state import make_setup as make_setup
from matta_jax.training._step import make_eval_step as make_eval_step
from matta_jax.training._step import make_train_step as make_train_step
from matta_jax.training._step import num_mixes as num_mixes
from matta_jax.training._step import static_members as static_members
