"""GGUF files, as llama.cpp has them: read and written without it."""

from matta_jax.packages.gguf._kinds import kind_of as kind_of
from matta_jax.packages.gguf._quantiser import check_loss as check_loss
from matta_jax.packages.gguf._quantiser import tensor_bytes as tensor_bytes
from matta_jax.packages.gguf._read import FILE_NAME as FILE_NAME
from matta_jax.packages.gguf._read import open_gguf as open_gguf
from matta_jax.packages.gguf._read import open_written as open_written
from matta_jax.packages.gguf._size import file_bytes as file_bytes
from matta_jax.packages.gguf._types import num_parameters as num_parameters
from matta_jax.packages.gguf._types import rounded_params as rounded_params
from matta_jax.packages.gguf._types import weight_bytes as weight_bytes
from matta_jax.packages.gguf._vocabulary import gguf_tokenizer as gguf_tokenizer
from matta_jax.packages.gguf._vocabulary import holds_texts as holds_texts
from matta_jax.packages.gguf._vocabulary import vocabulary_note as vocabulary_note
from matta_jax.packages.gguf._write import check_gguf as check_gguf
from matta_jax.packages.gguf._write import file_notes as file_notes
from matta_jax.packages.gguf._write import write_gguf as write_gguf
