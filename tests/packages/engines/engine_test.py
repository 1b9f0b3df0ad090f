"""An engine is asked in a process by itself: its answer, its end, and what it prints."""

import json
import subprocess
import sys

import numpy as np
import pytest

from matta_jax import packages
from matta_jax.errors import UserError
from matta_jax.packages.engines import _engine

LLAMA_CPP = packages.ENGINES["llama.cpp"]
# What our code asks of xllamacpp. Token 2 is the likeliest after an even prompt.
FAKE = """
import atexit, json, os, threading, http.server
__version__ = "7"
print("a banner", flush=True)

class Anything:
    def __getattr__(self, name):
        self.__dict__[name] = Anything()
        return self.__dict__[name]

CommonParams, ggml_type, llama_flash_attn_type = Anything, Anything(), Anything()

class Models(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        assert self.path == "/v1/models"
        self.send_response(200), self.end_headers()
        self.wfile.write(json.dumps({"data": [{"meta": {"n_params": 1234}}]}).encode())

class Server:
    def __init__(self, settings):
        CRASH
        assert settings.model.path == "the file" and settings.n_ctx == 256
        server = http.server.HTTPServer(("127.0.0.1", 0), Models)
        threading.Thread(target=server.serve_forever).start()
        self.listening_address = "127.0.0.1:%d" % server.server_port

    def handle_completions(self, request):
        if "logprobs" not in request:
            return self.timed(request)
        assert request["logit_bias"] == [[9, 1000]] and request["logprobs"] == 3
        total = sum(request["prompt"])
        top = [{"id": i, "logprob": -float(10 * total + i)} for i in (2, 0, 1)]
        return {"choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}]}

    def timed(self, request):
        # A round takes a millisecond more than the one before it, a token of it a tenth.
        self.calls = getattr(self, "calls", 0) + 1
        with open(os.environ["CALLS"], "a") as log:
            prompt = len(request["prompt"])
            row = [prompt, request["max_tokens"], request["cache_prompt"], request["logit_bias"]]
            log.write(json.dumps(row) + "\\n")
        count = request["max_tokens"] - LOST
        timings = {"prompt_ms": self.calls, "predicted_n": count}
        timings["predicted_ms"] = self.calls / 10 * (count - 1)
        return {"choices": [], "timings": timings}
"""
REQUEST = {"file": "the file", "ids": [[1, 2], [5, 7]], "vocab_size": 3, "token": 9}


@pytest.fixture
def xllamacpp(tmp_path, monkeypatch):
    """`xllamacpp(crash)`: the module as far as it is asked, which may end by a line of code."""

    def install(crash="pass", lost=0):
        code = FAKE.replace("CRASH", crash).replace("LOST", str(lost))
        (tmp_path / "xllamacpp.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setenv("CALLS", str(tmp_path / "calls"))

    return install


def test_an_answer_comes_from_a_process_by_itself(xllamacpp, monkeypatch):
    # Another test of this process may have imported the real one.
    monkeypatch.delitem(sys.modules, "xllamacpp", raising=False)
    xllamacpp()
    answer = _engine.ask(LLAMA_CPP, REQUEST)
    assert (answer.version, answer.parameters) == ("7", 1234)
    sums = np.array([[1, 3], [5, 12]])[..., None]
    np.testing.assert_array_equal(answer.log_probs, -(10 * sums + np.arange(3)))
    assert "xllamacpp" not in sys.modules


@pytest.mark.parametrize(
    ("crash", "words"),
    [
        (
            "atexit.register(os.write, 2, b'bye'); raise ValueError('no such file')",
            r"\(exit code 1; ValueError: no such file\); leave certify out",
        ),
        ("os.abort()", r"\(ended by signal 6\)"),
        ("os._exit(3)", r"\(exit code 3; a banner\)"),
    ],
)
def test_the_end_of_an_engine_is_a_line(xllamacpp, crash, words):
    xllamacpp(crash)
    with pytest.raises(UserError, match=f"llama.cpp does not run the model's files {words}"):
        _engine.ask(LLAMA_CPP, REQUEST)


MODEL = {"file": "the file", "vocab_size": 3, "token": 9}
TIMED = {"task": "time", "models": [MODEL, MODEL], "batch_size": 1, "length": 20, "threads": 1}
TIMED |= {"rounds": (3, 3), "seconds": 0.0}


@pytest.mark.parametrize(
    ("mode", "length", "prompt", "tokens"),
    [("prefill", 20, 20, 1), ("decode", 20, 4, 17), ("decode", 2, 1, 2)],
)
def test_models_are_timed_in_turn(xllamacpp, tmp_path, mode, length, prompt, tokens):
    xllamacpp()
    request = TIMED | {"mode": mode, "length": length}
    about, rounds = _engine.run_child(LLAMA_CPP, request, "latency_engine")
    assert about["version"] == "7"
    # The first round is left out.
    expected = np.array([2, 3, 4]) / (1 if mode == "prefill" else 10)
    np.testing.assert_allclose(rounds, [expected, expected], rtol=1e-6)
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert calls == [[prompt, tokens, mode == "decode", [[9, 1000]]]] * 8


def test_a_text_that_ends_early_is_no_time(xllamacpp):
    xllamacpp(lost=1)
    words = "llama.cpp wrote 16 of 17 tokens.*leave latency_engine out, or name another engine"
    with pytest.raises(UserError, match=words):
        _engine.run_child(LLAMA_CPP, TIMED | {"mode": "decode"}, "latency_engine")


def test_the_child_imports_nothing_of_ours():
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1], run_name='child'); "
        "sys.exit(any(name.split('.')[0] in ('matta_jax', 'jax', 'torch') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code, _engine._CHILD], check=True)
