"""Tokenizers: text to ids and back. Bytes, GPT-2's BPE from local files, and any Hugging Face
tokenizer JSON, behind one small interface.
"""

from matta_jax.tokenizers._base import TextIds as TextIds
from matta_jax.tokenizers._base import Tokenizer as Tokenizer
from matta_jax.tokenizers._bundle import TOKENIZER as TOKENIZER
from matta_jax.tokenizers._bundle import bundle_tokenizer as bundle_tokenizer
from matta_jax.tokenizers._bundle import bundled_spec as bundled_spec
from matta_jax.tokenizers._bundle import check_rules as check_rules
from matta_jax.tokenizers._bundle import companions as companions
from matta_jax.tokenizers._bundle import files_digest as files_digest
from matta_jax.tokenizers._bundle import own_tokenizer as own_tokenizer
from matta_jax.tokenizers._bundle import resolved_tokenizer as resolved_tokenizer
from matta_jax.tokenizers._byte import ByteTokenizer as ByteTokenizer
from matta_jax.tokenizers._conversation import Conversation as Conversation
from matta_jax.tokenizers._conversation import conversation_of as conversation_of
from matta_jax.tokenizers._digest import tokenizer_digest as tokenizer_digest
from matta_jax.tokenizers._make import fitting_tokenizer as fitting_tokenizer
from matta_jax.tokenizers._make import make_tokenizer as make_tokenizer
from matta_jax.tokenizers._pieces import Piece as Piece
from matta_jax.tokenizers._pieces import PieceKind as PieceKind
from matta_jax.tokenizers._pieces import Spaces as Spaces
from matta_jax.tokenizers._pieces import merges_tokenizer as merges_tokenizer
from matta_jax.tokenizers._pieces import read_spm as read_spm
from matta_jax.tokenizers._pieces import spm_tokenizer as spm_tokenizer
from matta_jax.tokenizers._tables import Tables as Tables
from matta_jax.tokenizers._tables import tables_of as tables_of
