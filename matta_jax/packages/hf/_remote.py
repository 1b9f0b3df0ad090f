"""The few lines of code in the folder of a mixed model, which transformers runs if it is told to.

Stock classes build all layers of one size. The code in a folder builds each by the stock class of a
layer, with sizes of its own. It is written here and never run: our reader goes by config.json.
"""

import string

CODE_FILE = "modeling_mixed.py"

_LLAMA_LIKE = '''"""$title with layers of their own sizes. Written by matta_jax."""

import copy

from transformers import ${stock}Config, ${stock}ForCausalLM
from transformers.models.$type.modeling_$type import ${stock}DecoderLayer


class Mixed${stock}Config(${stock}Config):
    model_type = "mixed_$type"


class Mixed${stock}ForCausalLM(${stock}ForCausalLM):
    config_class = Mixed${stock}Config

    def __init__(self, config):
        super().__init__(config)
        queries = config.num_attention_heads // config.num_key_value_heads
        for i, width in enumerate(config.intermediate_sizes):
            sizes = copy.copy(config)
            sizes.intermediate_size = width
            sizes.num_key_value_heads = config.num_key_value_heads_by_layer[i]
            sizes.num_attention_heads = queries * sizes.num_key_value_heads
            self.model.layers[i] = ${stock}DecoderLayer(sizes, i)
            self.model.layers[i].self_attn.config = config
        self.post_init()
'''

_GPT2 = '''"""$title with layers of their own sizes. Written by matta_jax."""

import copy

from transformers import GPT2Config, GPT2LMHeadModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.pytorch_utils import Conv1D


class MixedGPT2Config(GPT2Config):
    model_type = "mixed_gpt2"


class MixedGPT2ForCausalLM(GPT2LMHeadModel):
    config_class = MixedGPT2Config

    def __init__(self, config):
        super().__init__(config)
        for i, width in enumerate(config.intermediate_sizes):
            sizes = copy.copy(config)
            sizes.n_inner = width
            block = GPT2Block(sizes, layer_idx=i)
            block.attn.config = config
            block.attn.num_heads = config.num_attention_heads_by_layer[i]
            block.attn.split_size = block.attn.num_heads * block.attn.head_dim
            block.attn.c_attn = Conv1D(3 * block.attn.split_size, config.n_embd)
            block.attn.c_proj = Conv1D(config.n_embd, block.attn.split_size)
            self.transformer.h[i] = block
        self.post_init()
'''

# vLLM asks blocks for attributes, and a config is written as JSON: a block is a dict with both.
_DECI = '''"""Llama with layers of their own widths, as vLLM's DeciLM. Written by matta_jax."""

import copy

from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer


class Block(dict):
    def __getattr__(self, name):
        if name not in self:
            raise AttributeError(name)
        return Block(self[name]) if isinstance(self[name], dict) else self[name]


class DeciLMConfig(LlamaConfig):
    model_type = "nemotron-nas"

    def __init__(self, block_configs=(), **fields):
        super().__init__(**fields)
        self.block_configs = [Block(block) for block in block_configs]


class DeciLMForCausalLM(LlamaForCausalLM):
    config_class = DeciLMConfig

    def __init__(self, config):
        super().__init__(config)
        for i, block in enumerate(config.block_configs):
            sizes = copy.copy(config)
            sizes.intermediate_size = block.ffn.intermediate_size
            self.model.layers[i] = LlamaDecoderLayer(sizes, i)
            self.model.layers[i].self_attn.config = config
        self.post_init()
'''


def llama_code(title: str, stock: str, model_type: str) -> str:
    """The code for a block like Llama's.

    Args:
      title: of the kind.
      stock: what the names of its classes begin with.
      model_type: of the kind.
    """
    return string.Template(_LLAMA_LIKE).substitute(title=title, stock=stock, type=model_type)


def gpt2_code(title: str) -> str:
    """The code for GPT-2, whose kind has this title."""
    return string.Template(_GPT2).substitute(title=title)


def deci_code() -> str:
    """The code for a folder of vLLM's DeciLM."""
    return _DECI
