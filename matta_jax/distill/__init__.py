"""Distillation: the fused nested loss, the ramp, and the composite objective with its
named terms.
"""

from matta_jax.distill._objective import Objective as Objective
from matta_jax.distill._objective import make_objective as make_objective
from matta_jax.distill._objective import member_stream as member_stream
from matta_jax.distill._objective import mix_stream as mix_stream
from matta_jax.distill._pairs import PAIR_LOSSES as PAIR_LOSSES
from matta_jax.distill._plan import LossPlan as LossPlan
from matta_jax.distill._plan import OnlineTeacher as OnlineTeacher
from matta_jax.distill._plan import SoftLabels as SoftLabels
from matta_jax.distill._plan import Teacher as Teacher
from matta_jax.distill._plan import Term as Term
from matta_jax.distill._plan import TopKTeacher as TopKTeacher
from matta_jax.distill._ramp import ramp as ramp
from matta_jax.distill._smae import hide_tokens as hide_tokens
from matta_jax.distill.fused import Losses as Losses
from matta_jax.distill.fused import as_softmax as as_softmax
from matta_jax.distill.fused import nested_loss as nested_loss
