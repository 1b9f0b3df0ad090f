import math

import jax
import numpy as np
import pytest

from matta_jax import evaluate, packages
from matta_jax.data import Corpus, corpus_windows
from matta_jax.selection import scoring
from matta_jax.tokenizers import ByteTokenizer


def test_bits_per_byte_is_that_of_a_plain_loop(student, text):
    """Token by token over the stream, in numpy, with the context that each window gives."""
    model = packages.load_model(student)
    stream = [0]
    for name in ("a.txt", "b.txt"):
        stream += [*list((text / name).read_bytes()), 0]
    nats, seq_len = 0.0, 32
    logits = jax.jit(model.logits)
    for start in range(0, len(stream) - 1, seq_len):
        inputs = stream[start : start + seq_len]
        padded = np.zeros((1, seq_len), np.int32)
        padded[0, : len(inputs)] = inputs
        z = np.asarray(logits(model.params, padded), np.float64)
        for i, target in enumerate(stream[start + 1 : start + seq_len + 1]):
            if target:
                nats += math.log(np.exp(z[i] - z[i].max()).sum()) + z[i].max() - z[i, target]
    num_bytes = sum(len((text / name).read_bytes()) for name in ("a.txt", "b.txt"))
    tasks = [f"bits_per_byte:{text}/*.txt", f"perplexity:{text}/*.txt"]
    result = evaluate(model=student, tasks=tasks)
    assert result.scores[tasks[0]] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)
    assert result.scores[tasks[1]] == pytest.approx(math.exp(nats / num_bytes), rel=1e-5)


def test_batch_size_changes_nothing(student, text, cache):
    model = packages.load_model(student)
    windows = corpus_windows(
        Corpus(f"text:{text}/*.txt"), ByteTokenizer(), seq_len=32, cache_dir=cache
    )
    a = scoring.text_loss(model, windows, batch_size=1)
    b = scoring.text_loss(model, windows, batch_size=5)
    assert a.nats == pytest.approx(b.nats, rel=1e-6) and a.num_tokens == b.num_tokens == a.num_bytes
