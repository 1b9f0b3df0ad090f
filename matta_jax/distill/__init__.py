"""Distillation: losses, the ramp, and the composite objective with its named terms."""

from matta_jax.distill._losses import cross_entropy as cross_entropy
from matta_jax.distill._losses import divergence as divergence
from matta_jax.distill._objective import Objective as Objective
from matta_jax.distill._objective import Term as Term
from matta_jax.distill._objective import make_objective as make_objective
from matta_jax.distill._ramp import ramp as ramp
