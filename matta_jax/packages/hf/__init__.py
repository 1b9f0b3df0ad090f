"""Hugging Face's folders: a file for each foreign kind of model, and what they share."""

from matta_jax.packages.hf._format import DECI_TITLE as DECI_TITLE
from matta_jax.packages.hf._format import Foreign as Foreign
from matta_jax.packages.hf._format import hf_companions as hf_companions
from matta_jax.packages.hf._format import hf_config as hf_config
from matta_jax.packages.hf._format import hf_shapes as hf_shapes
from matta_jax.packages.hf._format import layout_of as layout_of
from matta_jax.packages.hf._format import layout_of_type as layout_of_type
from matta_jax.packages.hf._format import open_hf as open_hf
from matta_jax.packages.hf._format import to_hf as to_hf
from matta_jax.packages.hf._layout import Layout as Layout
from matta_jax.packages.hf._tensors import Reader as Reader
