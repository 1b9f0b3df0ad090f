"""Models in each format; what to spoil them with, and what to compare them by."""

import contextlib
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

from matta_jax import extract, nesting, packages
from matta_jax.errors import UserError
from matta_jax.packages import Packaging

# Each with what the model card of a padded hf says of its padding.
PADDED = {
    "student": [],
    "ta": [],
    "d_ff=48,16,48": ["zero neurons to d_ff 48"],
    "layers=0,2;d_model=16;num_heads=2;d_ff=16,48": ["zero neurons to d_ff 48"],
    "num_heads=2": ["zero heads to 3"],
    "num_heads=2;d_ff=48,16,48": ["zero neurons to d_ff 48", "zero heads to 3"],
    "num_heads=3,2,3": ["zero heads to 3"],
}


@pytest.fixture(scope="session")
def padded():
    """The spec of each of `models`, with what its card says of its padding in format hf."""
    return PADDED


@pytest.fixture(scope="session")
def models(run, tmp_path_factory):
    """`models(format, dtype)`: the folders of PADDED's models, by spec; with `pad` those of hf have
    layers of one size. They are shared: copy one before changing it.
    """
    folders = {}

    def get(format="orbax", dtype="fp32", pad=False):
        if (format, dtype, pad) not in folders:
            output = tmp_path_factory.mktemp("models") / "all"
            extracted = extract(
                str(run[1]), list(PADDED), output, packaging=Packaging(format, dtype, pad=pad)
            )
            paths = [model.path for model in extracted]
            folders[format, dtype, pad] = dict(zip(PADDED, paths, strict=True))
        return folders[format, dtype, pad]

    return get


@pytest.fixture
def hf_folder(models, tmp_path):
    """A Hugging Face folder to spoil: the TA's, of 3 layers, d_model 24, 3 heads and d_ff 48."""
    folder = tmp_path / "hf_folder"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(models("hf")["ta"] / name, folder / name)
    return folder


@pytest.fixture
def place(tmp_path):
    """An empty folder to write models to."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


@pytest.fixture(scope="session")
def weights():
    """`weights(folder)`: those of a model, by path."""

    def load(folder):
        flat = nesting.flatten(packages.load_model(folder).params)
        return {path: np.asarray(leaf) for path, leaf in flat.items()}

    return load


@pytest.fixture(scope="session")
def assert_same_bits():
    """`assert_same_bits(arrays, expected)`, of two mappings of arrays."""

    def check(arrays, expected):
        assert set(arrays) == set(expected)
        for path, leaf in expected.items():
            array, expected_array = arrays[path], np.asarray(leaf)
            assert (array.shape, array.dtype) == (expected_array.shape, expected_array.dtype), path
            assert array.tobytes() == expected_array.tobytes(), path

    return check


def _contents(folder):
    """Every file with its bytes, and every folder: hidden ones too."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture(scope="session")
def refused():
    """`with refused(words, place)` expects a UserError of one line, and `place` to be as it was."""

    @contextlib.contextmanager
    def expect(words, place):
        before = _contents(place)
        with pytest.raises(UserError, match=words) as error:
            yield
        assert "\n" not in str(error.value)
        assert _contents(place) == before

    return expect


@pytest.fixture(scope="session")
def edit_json():
    """`edit_json(file, edit)` changes a document."""

    def change(file, edit):
        document = json.loads(file.read_text())
        edit(document)
        file.write_text(json.dumps(document))

    return change


@pytest.fixture(scope="session")
def edit_tensors():
    """`edit_tensors(folder, edit)` changes the tensors of a model.safetensors."""

    def change(folder, edit):
        tensors = safetensors.numpy.load_file(folder / "model.safetensors")
        edit(tensors)
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")

    return change


@pytest.fixture(scope="session")
def save_tokenizer():
    """`save_tokenizer(file, size)` writes a tokenizer.json of so many ids."""

    def save(file, size):
        from tokenizers import Tokenizer, models

        words = {"<|endoftext|>": 0} | {f"word{i}": i for i in range(1, size)}
        Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>")).save(str(file))

    return save


@pytest.fixture(scope="session")
def logits_of_ours():
    """`logits_of_ours(folder, tokens)`: the logits [B, T, V] of a model of ours."""

    def compute(folder, tokens):
        model = packages.load_model(folder)
        return np.asarray(model.logits(model.params, tokens)).reshape(*tokens.shape, -1)

    return compute
