"""A server as a process: its answers on a socket, the stock client, and its end."""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest

pytest.importorskip("starlette")

import matta_jax
from matta_jax import packages
from matta_jax.errors import UserError
from matta_jax.serving import Sampling
from matta_jax.serving.server import serve

ROOT = pathlib.Path(__file__).parents[3]
slow = pytest.mark.slow  # Each starts a process that loads JAX.


@contextlib.contextmanager
def process(run, *arguments):
    """A server of a run's members, and its address."""
    command = [sys.executable, "-m", "matta_jax.bin.serve", f"--checkpoint={run[1]}", "--port=0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(
        [*command, *arguments], env=environment, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        told = ""
        while not (address := re.search(r"serving at (http://127\.0\.0\.1:\d+)", told)):
            line = server.stdout.readline()
            assert line, server.stderr.read()
            told += line
        yield server, address[1]
    finally:
        server.kill()
        server.communicate()


def post(address, **body):
    request = urllib.request.Request(f"{address}/v1/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


@pytest.fixture
def expected(run):
    [ta] = packages.load_in_place(str(run[1]), ["ta"])

    def text(prompt, num_tokens):
        [text] = matta_jax.generate(
            ta, prompt, num_tokens=num_tokens, sampling=Sampling(temperature=0)
        )
        return text.removeprefix(prompt)

    return text


@slow
def test_a_server_answers_and_ends_when_what_was_asked_is_written(run, expected):
    with process(run, "--draft=student", "--slots=2") as (server, address):
        body = {"prompt": "the", "max_tokens": 20, "temperature": 0}
        answer = post(address, **body)
        assert answer["choices"][0]["text"] == expected("the", 20)
        asked = json.dumps(body | {"stream": True})
        curl = ["curl", "-sN", f"{address}/v1/completions", "-d", asked]
        told = subprocess.run(curl, capture_output=True, text=True, check=True).stdout
        *chunks, end = told.strip().split("\n\n")
        texts = [json.loads(chunk[6:])["choices"][0]["text"] for chunk in chunks]
        assert "".join(texts) == expected("the", 20) and end == "data: [DONE]"

        # The signal comes while a long text is written.
        answers = []
        asking = threading.Thread(
            target=lambda: answers.append(post(address, **body | {"max_tokens": 3000}))
        )
        asking.start()
        busy = 0
        while not busy:
            with urllib.request.urlopen(f"{address}/metrics") as metrics:
                busy = float(re.search(r"slots_busy ([\d.]+)", metrics.read().decode())[1])
        server.send_signal(signal.SIGTERM)
        asking.join()
        assert answers[0]["usage"]["completion_tokens"] == 3000
        _, errors = server.communicate(timeout=60)
    assert server.returncode == 0 and errors == ""
    with pytest.raises(urllib.error.URLError):
        post(address, **body)


@slow
def test_the_stock_client_is_served(run, expected, tmp_path):
    openai = pytest.importorskip("openai")
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    arguments = [f"--chat_template={tmp_path}/chat.jinja", "--api_key=secret"]
    with process(run, *arguments) as (_, address):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0)
        assert {model.id for model in client.models.list()} == {"student", "ta"}
        settings = {"model": "ta", "max_tokens": 12, "temperature": 0}
        text = client.completions.create(prompt="the", **settings).choices[0].text
        assert text == expected("the", 12)
        smaller = client.completions.create(
            model="auto", prompt="the", max_tokens=2, extra_body={"max_params": 10_000}
        )
        assert smaller.model == "student"
        messages = [{"role": "user", "content": "the"}]
        chunks = client.chat.completions.create(messages=messages, stream=True, **settings)
        streamed = "".join(chunk.choices[0].delta.content for chunk in chunks)
        assert streamed == expected("the", 12)
        with pytest.raises(openai.BadRequestError, match="max_tokens=0 must be"):
            client.completions.create(model="ta", prompt="the", max_tokens=0)
        stranger = openai.OpenAI(base_url=f"{address}/v1", api_key="guess", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="the api key is missing or wrong"):
            stranger.models.list()


@slow
def test_bad_flags_end_in_a_line(run, tmp_path):
    command = [sys.executable, "-m", "matta_jax.bin.serve"]
    for arguments, words in (
        ([], "name either model"),
        ([f"--checkpoint={run[1]}", "--slots=0"], "slots=0 must be at least 1"),
        ([f"--checkpoint={run[1]}", "--port=99999"], "port=99999 must be from 0 to 65535"),
    ):
        result = subprocess.run(
            [*command, *arguments], env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 2 and result.stderr.count("\n") == 1
        assert result.stderr.startswith("error: ") and words in result.stderr


def test_an_address_that_is_taken_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=r"port=\d+: Address already in use; name another"):
            serve(None, "127.0.0.1", taken.getsockname()[1], print)
    with pytest.raises(UserError, match="port=65536 must be from 0 to 65535"):
        serve(None, "127.0.0.1", 65536, print)
    with pytest.raises(UserError, match=r"host='nowhere\.invalid': .*; name an address"):
        serve(None, "nowhere.invalid", 0, print)
