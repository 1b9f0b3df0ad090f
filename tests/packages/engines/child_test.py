"""vLLM in its process: what it is asked, what is counted of it, and which files it is given.

In the default run vLLM is a module with as much as is asked of it.
"""

import importlib.util

import numpy as np
import pytest

import matta_jax
from matta_jax import packages
from matta_jax.errors import UserError
from matta_jax.packages import Packaging
from matta_jax.packages.engines import _engine

VLLM = packages.ENGINES["vllm"]
MIX = "d_ff=48,16,48"
# Three ids, rounded up to four rows of two, which the head shares; its kernels take weights away.
FAKE = """
import os, types
assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
__version__ = "9"
SamplingParams = dict

class Tensor:
    def __init__(self, *shape):
        self.shape = shape
    def numel(self):
        return self.shape[0] * self.shape[-1]

class Model:
    table = Tensor(4, 2)
    taken = [Tensor(5, 7)]
    def parameters(self):
        return [self.table, *self.taken]
    def modules(self):
        about = {"num_embeddings_padded": 4, "org_vocab_size": 3, "weight": self.table}
        logits = types.SimpleNamespace(org_vocab_size=3)
        return [self, logits, *(types.SimpleNamespace(**about) for _ in "ab")]

class LLM:
    def __init__(self, folder, **settings):
        from vllm.model_executor import model_loader
        assert folder == "the folder" and settings["trust_remote_code"]
        assert settings["dtype"] == "float32" and settings["max_model_len"] == 3
        loader, model = model_loader.loaders["auto"](), Model()
        loader.load_weights(model, None)
        assert loader.has_loaded
        model.taken.clear()

    def generate(self, prompts, settings, use_tqdm):
        [prompt] = prompts
        ids = prompt["prompt_token_ids"]
        sums = [sum(ids[: i + 1]) for i in range(len(ids))]
        entry = lambda x: types.SimpleNamespace(logprob=-float(x))
        rows = [{i: entry(10 * total + i) for i in (2, 0, 1)} for total in sums]
        output = types.SimpleNamespace(logprobs=rows[-1:])
        return [types.SimpleNamespace(prompt_logprobs=[None, *rows[:-1]], outputs=[output])]
"""
LOADER = """
loaders = {}

class DefaultModelLoader:
    def load_weights(self, model, model_config):
        self.has_loaded = True

def register_model_loader(name):
    return lambda loader: loaders.setdefault(name, loader)
"""


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    """The module as far as it is asked."""
    inner = tmp_path / "fake" / "vllm" / "model_executor"
    inner.mkdir(parents=True)
    (inner.parent / "__init__.py").write_text(FAKE)
    (inner / "__init__.py").write_text("")
    (inner / "model_loader.py").write_text(LOADER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))


def test_an_answer_of_vllm(vllm):
    request = {"folder": "the folder", "ids": [[1, 2], [5, 7]], "vocab_size": 3, "runs_code": True}
    answer = _engine.ask(VLLM, request)
    assert (answer.version, answer.parameters) == ("9", 3 * 2 + 5 * 7)
    sums = np.array([[1, 3], [5, 12]])[..., None]
    np.testing.assert_array_equal(answer.log_probs, -(10 * sums + np.arange(3)))


def test_vllm_that_is_not_there_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setattr(_engine.importlib.util, "find_spec", lambda _: None)
    words = r"certify='vllm' needs the package vllm: pip install 'matta_jax\[vllm\]'"
    with pytest.raises(UserError, match=words) as error:
        matta_jax.extract(str(run[1]), "student", tmp_path / "m", certify=["vllm"])
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="latency_engine='vllm' must be one of transformers, llama"):
        packages.packaging_for("vllm", Packaging("vllm"))


@pytest.mark.parametrize(
    ("block", "spec", "form", "stored", "is_read"),
    [
        ("llama", "d_ff=96,48,64", "hf", "vllm", False),
        ("llama", "d_ff=96,48,64", "vllm", "vllm", True),
        ("llama", "ta", "hf", "hf", True),
        ("qwen3", "d_ff=96,48,64", "hf", "hf", False),
        ("llama", "num_kv_heads=2,3,2", "orbax", "hf", False),
    ],
)
@pytest.mark.few(2)
def test_vllm_is_given_what_it_reads(written, engines, block, spec, form, stored, is_read):
    """Layers of their own widths where it has room for them, else stock classes, padded."""
    folder, _ = written(block, spec, Packaging(form))
    asked = engines()
    certificate = matta_jax.certify(folder, ["vllm"]).manifest["engines"]["vllm"]
    [(_, request)] = asked
    assert certificate["format"] == stored and certificate["batch"] == [2, 32]
    assert (request["folder"] == str(folder)) == is_read
    assert request["runs_code"] == (stored == "vllm") and request["vocab_size"] == 256


CASES = [
    ("llama", "student"),
    ("untied", "d_ff=96,128,64"),
    ("llama", "num_kv_heads=2,3,2;d_ff=64,128,64"),
    ("qwen2", "d_ff=128,64,96"),
    ("qwen3", "d_ff=128,64,96"),
    ("llama3", "d_ff=128,64,96"),
    ("gpt2", "ta"),
    ("gpt2", "num_heads=2,6,2;d_ff=64,128,64"),
]


@pytest.fixture
def real_vllm():
    # Not imported here: it is never beside JAX.
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("block", "spec"), CASES)
def test_vllm_computes_what_we_do(real_vllm, written, block, spec):
    folder, _ = written(block, spec, Packaging("orbax"), is_tall=True)
    certificate = matta_jax.certify(folder, ["vllm"]).manifest["engines"]["vllm"]
    print(block, spec, certificate)
    # These weights make more of a rounding than trained ones: the largest is half of the limit.
    assert 0 < certificate["mean_difference"] < certificate["limit"] / 20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_vllm_says_why_it_does_not_run_a_model(real_vllm, written):
    folder, _ = written("llama", "student", Packaging("vllm"))
    with pytest.raises(UserError, match="vllm does not run the model's files .*head") as error:
        matta_jax.certify(folder, ["vllm"])
    assert "\n" not in str(error.value)
