"""Data: corpora, token windows, labelled examples, labels of a Teacher, and the Grain pipeline."""

from matta_jax.data._corpora import Corpus as Corpus
from matta_jax.data._corpora import Document as Document
from matta_jax.data._corpora import split_documents as split_documents
from matta_jax.data._examples import ExampleSet as ExampleSet
from matta_jax.data._examples import read_examples as read_examples
from matta_jax.data._jsonl import file_fingerprint as file_fingerprint
from matta_jax.data._jsonl import read_json_lines as read_json_lines
from matta_jax.data._jsonl import text_of as text_of
from matta_jax.data._labels import LabelHeader as LabelHeader
from matta_jax.data._labels import LabelledWindows as LabelledWindows
from matta_jax.data._labels import Labels as Labels
from matta_jax.data._labels import write_header as write_header
from matta_jax.data._labels import write_labels as write_labels
from matta_jax.data._pipeline import Batch as Batch
from matta_jax.data._pipeline import Examples as Examples
from matta_jax.data._pipeline import sequential_batches as sequential_batches
from matta_jax.data._pipeline import training_batches as training_batches
from matta_jax.data._split import glob_data as glob_data
from matta_jax.data._split import split_both as split_both
from matta_jax.data._split import split_data as split_data
from matta_jax.data._windows import Windows as Windows
from matta_jax.data._windows import corpus_windows as corpus_windows
from matta_jax.data._windows import split_windows as split_windows
