"""Families of models: each with its modules, its inputs and outputs, in a file of its own."""

from matta_jax.models.families import _embedder as _embedder
from matta_jax.models.families import _gpt2 as _gpt2
from matta_jax.models.families import _llama as _llama
from matta_jax.models.families import _scorer as _scorer
from matta_jax.models.families import _vit as _vit
from matta_jax.models.families._embedder import DECODED as DECODED
from matta_jax.models.families._embedder import HIDDEN as HIDDEN
from matta_jax.models.families._embedder import HIDDEN_IN_DECODER as HIDDEN_IN_DECODER
from matta_jax.models.families._family import Block as Block
from matta_jax.models.families._family import Family as Family
from matta_jax.models.families._family import Modules as Modules
from matta_jax.models.families._family import families as families
from matta_jax.models.families._family import family_of as family_of
from matta_jax.models.families._family import register as register
from matta_jax.models.families._schema import DOCUMENTS as DOCUMENTS
from matta_jax.models.families._schema import Input as Input
from matta_jax.models.families._schema import Inputs as Inputs
from matta_jax.models.families._schema import Schema as Schema
from matta_jax.models.families._schema import Targets as Targets
from matta_jax.models.families._schema import flat_positions as flat_positions
