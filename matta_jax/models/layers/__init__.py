"""Layers that families of models are made of. They know nothing of nesting: a module has whatever
size its weights have.
"""

from matta_jax.models.layers._attention import Attention as Attention
from matta_jax.models.layers._attention import Cache as Cache
from matta_jax.models.layers._attention import attend as attend
from matta_jax.models.layers._attention import extend_cache as extend_cache
from matta_jax.models.layers._build import Build as Build
from matta_jax.models.layers._context import Context as Context
from matta_jax.models.layers._context import Hidden as Hidden
from matta_jax.models.layers._context import Window as Window
from matta_jax.models.layers._dropout import drop as drop
from matta_jax.models.layers._grouped import GroupedAttention as GroupedAttention
from matta_jax.models.layers._kept import KEPT_NAMES as KEPT_NAMES
from matta_jax.models.layers._kept import PRODUCT as PRODUCT
from matta_jax.models.layers._kept import with_products as with_products
from matta_jax.models.layers._linear import project as project
from matta_jax.models.layers._mlp import MLP as MLP
from matta_jax.models.layers._mlp import GatedMLP as GatedMLP
from matta_jax.models.layers._norms import LayerNorm as LayerNorm
from matta_jax.models.layers._norms import RMSNorm as RMSNorm
from matta_jax.models.layers._rotary import Rotary as Rotary
