"""An engine is asked in a process by itself: its answer, its end, and what it prints."""

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
print("a banner")

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
        assert request["logit_bias"] == [[9, 1000]] and request["logprobs"] == 3
        total = sum(request["prompt"])
        top = [{"id": i, "logprob": -float(10 * total + i)} for i in (2, 0, 1)]
        return {"choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}]}
"""
REQUEST = {"file": "the file", "ids": [[1, 2], [5, 7]], "vocab_size": 3, "token": 9}


@pytest.fixture
def xllamacpp(tmp_path, monkeypatch):
    """`xllamacpp(crash)`: the module as far as it is asked, which may end by a line of code."""

    def install(crash="pass"):
        (tmp_path / "xllamacpp.py").write_text(FAKE.replace("CRASH", crash))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return install


def test_an_answer_comes_from_a_process_by_itself(xllamacpp):
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


def test_the_child_imports_nothing_of_ours():
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1], run_name='child'); "
        "sys.exit(any(name.split('.')[0] in ('matta_jax', 'jax', 'torch') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code, _engine._CHILD], check=True)
