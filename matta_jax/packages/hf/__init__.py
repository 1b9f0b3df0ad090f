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
from matta_jax.packages.hf._gpt2 import GPT2Layout as GPT2Layout
from matta_jax.packages.hf._layout import Layout as Layout
from matta_jax.packages.hf._llama import LlamaLayout as LlamaLayout
from matta_jax.packages.hf._qwen import Qwen2Layout as Qwen2Layout
from matta_jax.packages.hf._qwen import Qwen3Layout as Qwen3Layout
from matta_jax.packages.hf._rope import written_rope as written_rope
from matta_jax.packages.hf._tensors import Reader as Reader
from matta_jax.packages.hf._tensors import tensor_readers as tensor_readers
from matta_jax.packages.hf._tensors import tensor_shapes as tensor_shapes
from matta_jax.packages.hf._tensors import to_tensors as to_tensors
