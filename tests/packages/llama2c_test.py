"""Files of llama2.c, of both versions."""

import pathlib
import struct

import numpy as np
import pytest

import matta_jax
from matta_jax import packages, storage
from matta_jax.errors import UserError
from matta_jax.serving import Sampling

BABY = pathlib.Path(__file__).parents[3] / "shared" / "data" / "models" / "babyllama105"
DIM, HIDDEN, LAYERS, HEADS, GROUPS, VOCAB, LENGTH = 8, 12, 2, 2, 1, 256, 6


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    keys = DIM // HEADS * GROUPS
    shapes = {
        "embed": (VOCAB, DIM), "before": (LAYERS, DIM), "q": (LAYERS, DIM, DIM),
        "k": (LAYERS, keys, DIM), "v": (LAYERS, keys, DIM), "o": (LAYERS, DIM, DIM),
        "after": (LAYERS, DIM), "gate": (LAYERS, HIDDEN, DIM), "down": (LAYERS, DIM, HIDDEN),
        "up": (LAYERS, HIDDEN, DIM), "norm": (DIM,), "head": (VOCAB, DIM),
    }  # fmt: skip
    return {name: rng.normal(size=shape).astype("<f4") for name, shape in shapes.items()}


def write(file, parts, *, version=0, is_tied=True, **sizes):
    numbers = {
        "dim": DIM, "hidden": HIDDEN, "layers": LAYERS, "heads": HEADS, "groups": GROUPS,
        "vocab": VOCAB, "length": LENGTH,
    }  # fmt: skip
    numbers |= sizes
    order = ["before", "after", "norm", "embed", "q", "k", "v", "o", "gate", "down", "up"]
    if version:
        header = struct.pack("<Ii7iB", 0x616B3432, version, *numbers.values(), is_tied)
        header = header.ljust(256, b"\0")
    else:
        numbers["vocab"] *= 1 if is_tied else -1
        header = struct.pack("<7i", *numbers.values())
        order = ["embed", "before", "q", "k", "v", "o", "after", "gate", "down", "up", "norm"]
    turns = b"" if version else bytes(4 * LENGTH * DIM // HEADS)
    head = b"" if is_tied else parts["head"].tobytes()
    file.write_bytes(header + b"".join(parts[name].tobytes() for name in order) + turns + head)
    return file


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("version", [0, 1])
def test_a_file_is_read_with_its_pairs_half_a_head_apart(version, is_tied, tmp_path):
    parts = arrays()
    file = write(tmp_path / "a.bin", parts, version=version, is_tied=is_tied)
    package = matta_jax.import_llama2c(file, tmp_path / "ours", tokenizer="byte")
    params = packages.load_model(package.path).params
    assert package.config.model.tie_embeddings is is_tied
    np.testing.assert_array_equal(params["embed"]["tokens"], parts["embed"])
    layer = params["blocks"]["0"]
    # Rows 0, 2, 1, 3 of each head, and transposed: [L, K, D, H, Q, E].
    w_q = np.asarray(layer["attention"]["w_q"])[1].reshape(DIM, DIM)
    np.testing.assert_array_equal(w_q.T, parts["q"][1][[0, 2, 1, 3, 4, 6, 5, 7]])
    w_kv = np.asarray(layer["attention"]["w_kv"])[1].reshape(DIM, 2, 4)
    np.testing.assert_array_equal(w_kv[:, 0].T, parts["k"][1][[0, 2, 1, 3]])
    np.testing.assert_array_equal(w_kv[:, 1].T, parts["v"][1])
    w_in = np.asarray(layer["mlp"]["w_in"])[0].reshape(DIM, 2, HIDDEN)
    np.testing.assert_array_equal(w_in[:, 1].T, parts["up"][0])
    if not is_tied:
        np.testing.assert_array_equal(params["head"]["table"], parts["head"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "is of version 2; name a .bin file"),
        ({"layers": 3}, r"bytes, but its header says"),
        ({"heads": 0}, "says n_heads=0"),
        ({"heads": 8}, "dim=8 is not of 8 heads of an even width"),
    ],
)
def test_what_is_no_such_file_is_refused(change, words, tmp_path):
    file = write(tmp_path / "a.bin", arrays(), **change)
    with pytest.raises(UserError, match=words):
        matta_jax.import_llama2c(file, tmp_path / "ours", tokenizer="byte")


def test_a_file_without_a_header_or_a_tokenizer_is_refused(tmp_path):
    (tmp_path / "short.bin").write_bytes(b"short")
    with pytest.raises(UserError, match="is too short for a header"):
        matta_jax.import_llama2c(tmp_path / "short.bin", tmp_path / "ours", tokenizer="byte")
    with pytest.raises(UserError, match="none.bin' is missing"):
        matta_jax.import_llama2c(tmp_path / "none.bin", tmp_path / "ours", tokenizer="byte")
    file = write(tmp_path / "a.bin", arrays())
    with pytest.raises(UserError, match="holds no tokenizer; name one"):
        matta_jax.import_llama2c(file, tmp_path / "ours")


@pytest.mark.skipif(not BABY.is_dir(), reason="the shared models are not here")
@pytest.mark.slow
def test_babyllama_goes_on_with_a_story(tmp_path):
    pytest.importorskip("sentencepiece")
    package = matta_jax.import_llama2c(
        storage.resolve(BABY) / "model5000.bin",
        tmp_path / "ours",
        tokenizer=str(BABY / "tok105.model"),
    )
    assert package.counts.parameters == 936_448
    model = matta_jax.load_model(package.path)
    greedy = Sampling(temperature=0)
    [text] = matta_jax.generate(model, "Once upon a time", num_tokens=50, sampling=greedy)
    assert text.startswith("Once upon a time, there was a little girl named")
