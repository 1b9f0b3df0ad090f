"""Models: the GPT decoder and the scorer as plain modules, and the joint forward pass of a nest of
them.
"""

from matta_jax.models._decode import decode as decode
from matta_jax.models._decode import decoder_weights as decoder_weights
from matta_jax.models._decode import init_cache as init_cache
from matta_jax.models._decode import prefill as prefill
from matta_jax.models._gpt import GPT as GPT
from matta_jax.models._gpt import Architecture as Architecture
from matta_jax.models._gpt import architecture_of as architecture_of
from matta_jax.models._gpt import logits as logits
from matta_jax.models._nested import apply as apply
from matta_jax.models._nested import block_importance as block_importance
from matta_jax.models._nested import candidate_apply as candidate_apply
from matta_jax.models._nested import joint_apply as joint_apply
from matta_jax.models._nested import module_apply as module_apply
from matta_jax.models._nested import sub_model_apply as sub_model_apply
from matta_jax.models._plain import abstract_params as abstract_params
from matta_jax.models._plain import init_params as init_params
from matta_jax.models._plain import logical_axes as logical_axes
from matta_jax.models._scorer import Extras as Extras
from matta_jax.models._targets import Targets as Targets
from matta_jax.models._targets import targets_of as targets_of
