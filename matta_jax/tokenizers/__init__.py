"""Tokenizers: text to ids and back."""

from matta_jax.tokenizers._tokenizers import ByteTokenizer as ByteTokenizer
from matta_jax.tokenizers._tokenizers import Tokenizer as Tokenizer
from matta_jax.tokenizers._tokenizers import make_tokenizer as make_tokenizer
from matta_jax.tokenizers._tokenizers import tokenizer_digest as tokenizer_digest
