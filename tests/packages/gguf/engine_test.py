"""llama.cpp reads our files, and computes on them what we do.

Its server answers with log-probabilities; weights and cache in float32, one thread, no flash
attention. What it computes in float32 differs from ours by a few 1e-6 of the logits' size.
"""

import contextlib
import functools
import json
import subprocess
import sys
import urllib.request

import numpy as np
import pytest

import matta_jax
from matta_jax import packages
from matta_jax.packages import Packaging
from matta_jax.packages.engines import _child
from matta_jax.tokenizers import make_tokenizer

xllamacpp = pytest.importorskip("xllamacpp")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

MIX = "d_ff=96,48,64"
GROUPS = "num_kv_heads=2,3,2;d_ff=48,96,48"
# Queries that are narrower than the residual stream.
FEWER = "num_kv_heads=2"
IDS = (34, 61, 121, 4, 19, 96, 105, 121, 32)
EXACT = [
    ("llama", "student"),
    ("llama", "ta"),
    ("llama", MIX),
    ("llama", GROUPS),
    ("llama", FEWER),
    ("untied", "ta"),
    ("untied", MIX),
    ("ungrouped", "ta"),
    ("ungrouped", MIX),
    ("wide heads", "student"),
    ("wide heads", GROUPS),
    ("llama3", "ta"),
    ("llama3", MIX),
    ("linear", "ta"),
    ("linear", MIX),
    ("yarn", "ta"),
    ("yarn", MIX),
    ("qwen2", "student"),
    ("qwen2", "ta"),
    ("qwen2", MIX),
    ("qwen2", GROUPS),
    ("qwen2", FEWER),
    ("qwen2 untied", "ta"),
    ("qwen2 untied", MIX),
    ("qwen3", "student"),
    ("qwen3", "ta"),
    ("qwen3", MIX),
    ("qwen3", GROUPS),
    ("qwen3", FEWER),
    ("qwen3 untied", "ta"),
    ("qwen3 yarn", "ta"),
    ("qwen3 yarn", MIX),
]
GPT2 = ["student", "ta", MIX, "num_heads=4", "num_heads=4,6,4;d_ff=48,96,48"]
TEXTS = (
    "Once upon a time, there were 3 cats, and 12345 or 1 000 000 dogs.",
    "I'll say WE'RE here; don't he'd 'quoted' ",
    " two  spaces,   and\na line\r\n\n\n\t\twith tabs  \n  ",
    "Ünïcode: é, ﬁ, ², 中文, 🙂 Ελλάδα 2²",
    "def f(x):\n    return x ** 2  # 100%\n",
    "<|endoftext|> and <s>[x]</s>",
)


class Engine:
    """A server of llama.cpp on a model's file."""

    def __init__(self, folder):
        settings = xllamacpp.CommonParams()
        settings.model.path = str(folder / "model.gguf")
        settings.n_ctx, settings.n_parallel, settings.warmup = 64, 1, False
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        kinds = xllamacpp.llama_flash_attn_type
        settings.flash_attn_type = kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server = xllamacpp.Server(settings)
        # One that was asked nothing may wait for ever for its own thread when it goes.
        self._server.handle_completions({"prompt": [1], "max_tokens": 1})

    def log_probs(self, ids, vocab_size):
        """Those after each id [T, V]."""
        rows = np.full((len(ids), vocab_size), np.nan)
        for i in range(len(ids)):
            request = {
                "prompt": list(ids[: i + 1]),
                "max_tokens": 1,
                "temperature": 0,
                "logprobs": vocab_size,
                "cache_prompt": False,
                # A letter: of the end, or of half a character, the answer holds no text and no
                # probabilities. These are of the model, without the bias.
                "logit_bias": [[ord("a"), 1000]],
            }
            answer = self._server.handle_completions(request)
            answer = answer if isinstance(answer, dict) else json.loads(answer)
            [step] = answer["choices"][0]["logprobs"]["content"]
            for top in step["top_logprobs"]:
                rows[i, top["id"]] = top["logprob"]
        assert not np.isnan(rows).any()
        return rows

    def ask(self, path, body=None):
        """The answer of its web server."""
        data = None if body is None else json.dumps(body).encode()
        address = self._server.listening_address
        url = address if address.startswith("http") else f"http://{address}"
        request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
        with contextlib.closing(urllib.request.urlopen(request)) as stream:
            return json.load(stream)

    @functools.cached_property
    def num_params(self):
        return self.ask("/v1/models")["data"][0]["meta"]["n_params"]


@pytest.fixture
def compared(log_probs_of, record_property):
    """`compared(folder)`: the engine, and |difference| of log-probabilities [T, V] as a share of
    the logits' size.
    """

    def compare(folder):
        model, engine = packages.load_model(folder), Engine(folder)
        ours = log_probs_of(model, IDS)
        differences = np.abs(engine.log_probs(IDS, model.architecture.vocab_size) - ours)
        size = np.abs(np.asarray(model.logits(model.params, np.array([IDS])))).max()
        record_property("share", float(differences.max() / size))
        print(f"{folder.name}: {differences.max():.2e} of {size:.1f}")
        return engine, differences / size

    return compare


@pytest.mark.parametrize(("block", "spec"), EXACT)
def test_log_probabilities_are_ours(written, compared, block, spec):
    folder, weights = written(block, spec)
    engine, differences = compared(folder)
    assert differences.max() < 5e-6
    factors = packages.load_model(folder).architecture.head_dim // 2 if block == "llama3" else 0
    assert engine.num_params == sum(weight.size for weight in weights.values()) + factors


@pytest.mark.parametrize("spec", GPT2)
def test_log_probabilities_of_a_gpt2_are_ours(written, compared, spec):
    """Its GELU is a table of half precision there."""
    folder, weights = written("gpt2", spec)
    engine, differences = compared(folder)
    assert differences.max() < 1e-3
    size = sum(weight.size for weight in weights.values())
    # Mixes are padded.
    assert engine.num_params == size if spec in ("student", "ta") else engine.num_params > size


@pytest.mark.parametrize("quantize", ["f16", "bf16", "q8_0", "q5_0", "q4_0"])
@pytest.mark.parametrize(
    ("block", "spec"), [("llama", "d_ff=128,64,96"), ("qwen3", "d_ff=128,64,96"), ("gpt2", "ta")]
)
def test_quantised_files_run(written, compared, block, spec, quantize):
    """Their kernels round activations too, ours do not."""
    folder, _ = written(block, spec, Packaging("gguf", quantize=quantize), is_wide=True)
    _, differences = compared(folder)
    assert differences.mean() < (2e-3 if quantize == "f16" else 3e-2)


@pytest.mark.parametrize("kind", ["byte", "gpt2", "gpt-2", "smollm", "llama-bpe", "qwen2", "spm"])
def test_texts_have_our_ids(written, tokenizer_file, kind):
    spec = tokenizer_file(kind)
    tokenizer = make_tokenizer(spec)
    folder, _ = written("llama", "student", vocab_size=tokenizer.vocab_size + 1, tokenizer=spec)
    engine = Engine(folder)
    for text in TEXTS:
        answer = engine.ask("/tokenize", {"content": text, "parse_special": False})
        assert answer["tokens"] == tokenizer.encode(text).tolist(), text
    # As here, a text has its start before it.
    answer = engine.ask("/tokenize", {"content": "a", "add_special": True})
    assert answer["tokens"] == [tokenizer.start_id, *tokenizer.encode("a").tolist()]


COUNT = """
import os, runpy, sys
server = runpy.run_path(sys.argv[1])["_LlamaServer"](sys.argv[2], 8, threads=1, is_exact=True)
print(server.num_parameters(), flush=True)
os._exit(0)
"""


def test_a_file_without_a_tokenizer_is_loaded(written, save_words):
    folder, weights = written("llama", "student", tokenizer=save_words(256))
    # It cannot be asked anything, so that it may not end: in a process which does not wait for it.
    done = subprocess.run(
        [sys.executable, "-c", COUNT, _child.__file__, str(folder / "model.gguf")],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert int(done.stdout) == sum(weight.size for weight in weights.values()), done.stderr


def test_a_sub_model_of_a_run_is_served(run, compared, tmp_path):
    packaging = Packaging("gguf")
    [model] = matta_jax.extract(str(run[1]), ["d_ff=48,16,48"], tmp_path / "m", packaging=packaging)
    _, differences = compared(model.path)
    assert differences.max() < 1e-3
