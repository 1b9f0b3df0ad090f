"""A server's answers, in one process: they are those of `generate`, and none is a traceback."""

import asyncio
import json
import threading

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

from starlette.testclient import TestClient

import matta_jax
from matta_jax import packages
from matta_jax.errors import UserError
from matta_jax.serving import Choice, Sampling
from matta_jax.serving.server import Bounds, Settings, _run, load_app

SPECS = ("student", "ta", "d_ff=16,48,32")
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'tool' %}"
    "{{ raise_exception('no tools') }}{% endif %}{{ message.role }}: {{ message.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def make(run, choice=None, **settings):
    choice = choice or Choice(checkpoint=str(run[1]), sub_models=SPECS, draft="student")
    return load_app(choice, Settings(**{"slots": 3} | settings))[0]


@pytest.fixture(scope="module")
def client(run, tmp_path_factory):
    template = tmp_path_factory.mktemp("chat") / "chat.jinja"
    template.write_text(TEMPLATE)
    app = make(run, chat_template=str(template), max_tokens=64, bounds=Bounds(body_bytes=20_000))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def models(run):
    return {model.spec: model for model in packages.load_in_place(str(run[1]), SPECS)}


def ask(client, path="/v1/completions", **body):
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(client, path="/v1/completions", **body):
    answer = client.post(path, json=body | {"stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, end = answer.text.rstrip("\n").split("\n\n")
    assert end == "data: [DONE]"
    return [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]


@pytest.mark.few(3)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0},
        {"temperature": 0.8, "top_k": 9, "top_p": 0.9, "seed": 4},
        {"seed": 5, "min_p": 0.05, "repetition_penalty": 1.3, "logit_bias": {"104": 2}},
    ],
)
def test_a_text_is_that_of_generate(client, models, spec, settings):
    values = dict(settings)
    values["logit_bias"] = {int(k): v for k, v in values.pop("logit_bias", {}).items()}
    expected = matta_jax.generate(
        models[spec], "the quick", num_tokens=20, num_samples=2, sampling=Sampling(**values)
    )
    body = {"model": spec, "prompt": "the quick", "max_tokens": 20, "n": 2, **settings}
    answer = ask(client, echo=True, **body)
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert answer["model"] == spec and answer["object"] == "text_completion"
    streamed = ["", ""]
    for chunk in events(client, echo=True, **body):
        [choice] = chunk["choices"]
        streamed[choice["index"]] += choice["text"]
    assert streamed == expected


def test_prompts_may_be_texts_and_tokens(client):
    texts = ask(client, model="ta", prompt=["the", "a"], n=2, max_tokens=5, temperature=0)
    ids = [[0, *b"the"], [0, *b"a"]]
    tokens = ask(client, model="ta", prompt=ids, n=2, max_tokens=5, temperature=0)
    shown = [[choice["text"] for choice in answer["choices"]] for answer in (texts, tokens)]
    assert shown[0] == shown[1] and len(shown[0]) == 4
    assert texts["usage"] == tokens["usage"]
    assert texts["usage"]["prompt_tokens"] == 4 + 2
    assert texts["usage"]["completion_tokens"] == 20
    lone = ask(client, model="ta", prompt=ids[0], max_tokens=5, temperature=0)
    assert lone["choices"][0]["text"] == shown[0][0]


def test_budgets_choose_the_model(client, models):
    sizes = {spec: model.counts.parameters for spec, model in models.items()}
    body = {"prompt": "a", "max_tokens": 1}
    assert ask(client, **body)["model"] == "ta"
    assert ask(client, model="auto", max_params=sizes["ta"] - 1, **body)["model"] == SPECS[2]
    assert ask(client, max_params=sizes["student"], **body)["model"] == "student"
    assert ask(client, max_mb=4e-6 * sizes["student"], **body)["model"] == "student"


def a_stop_of(text):
    """Two characters of a text that stand in it for the first time."""
    place = next(i for i in range(4, len(text)) if text.index(text[i : i + 2]) == i)
    return text[place : place + 2]


def test_stop_strings_end_a_text_and_are_not_streamed(client):
    body = {"model": "ta", "prompt": "the", "max_tokens": 30, "temperature": 1.5, "seed": 1}
    text = ask(client, **body)["choices"][0]["text"]
    stop = a_stop_of(text)
    expected = text[: text.index(stop)]
    [choice] = ask(client, stop=stop, **body)["choices"]
    assert (choice["text"], choice["finish_reason"]) == (expected, "stop")
    chunks = [chunk["choices"][0] for chunk in events(client, stop=["\0\0", stop], **body)]
    assert "".join(chunk["text"] for chunk in chunks) == expected
    assert [chunk["finish_reason"] for chunk in chunks][-1] == "stop"


def test_half_a_stop_string_waits_in_a_stream(run, monkeypatch):
    """Turns of one token: the string comes in two pieces."""
    monkeypatch.setattr(_run, "_TURN_SECONDS", 1e-9)
    choice = Choice(checkpoint=str(run[1]), sub_models=SPECS)
    body = {"model": "ta", "prompt": "the", "max_tokens": 20, "temperature": 1.5, "seed": 1}
    with TestClient(make(run, choice), raise_server_exceptions=False) as client:
        # The first turn, of which no time is known yet, is as long as it may be.
        text = ask(client, **body)["choices"][0]["text"]
        stop = a_stop_of(text)
        chunks = [chunk["choices"][0] for chunk in events(client, stop=stop, **body)]
    assert len(chunks) > 4
    assert "".join(chunk["text"] for chunk in chunks) == text[: text.index(stop)]


def test_log_probabilities_are_told(client):
    body = {"model": "student", "prompt": "the", "max_tokens": 5, "temperature": 0, "logprobs": 3}
    [choice] = ask(client, **body)["choices"]
    told = choice["logprobs"]
    assert len(told["tokens"]) == len(told["token_logprobs"]) == len(told["text_offset"]) == 5
    for token, log_p, top in zip(
        told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True
    ):
        assert len(top) == 3 and max(top.values()) == top[token] == pytest.approx(log_p)
    assert [choice["text"][place] for place in told["text_offset"]] == told["tokens"]
    assert told["text_offset"] == list(range(5))
    streamed = [chunk["choices"][0]["logprobs"] for chunk in events(client, **body)]
    for name in ("token_logprobs", "text_offset"):
        assert [value for part in streamed for value in part[name]] == told[name]
    assert ask(client, **body | {"logprobs": 0})["choices"][0]["logprobs"]["top_logprobs"] is None


def test_pieces_tell_what_was_drafted(client):
    name = 'draft_accepted_total{spec="ta"}'
    before = metric(client.get("/metrics").text, name)
    body = {"model": "ta", "prompt": "the", "max_tokens": 30, "temperature": 0}
    chunks = [chunk["choices"][0] for chunk in events(client, pieces=True, **body)]
    pieces = [piece for chunk in chunks for piece in chunk["pieces"]]
    assert len(pieces) == 30 and {drafted for _, drafted in pieces} <= {True, False}
    assert "".join(text for text, _ in pieces) == "".join(chunk["text"] for chunk in chunks)
    metrics = client.get("/metrics").text
    accepted = metric(metrics, name)
    assert accepted - before == sum(drafted for _, drafted in pieces) > 0
    assert 0 <= accepted <= metric(metrics, 'draft_proposed_total{spec="ta"}')
    assert metric(metrics, 'draft_proposed_total{spec="ta"}') > 0


def test_a_conversation_is_written_by_its_template(client, models):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "the"}, {"text": " fox"}]},
    ]
    prompt = "system: be brief\nuser: the fox\nassistant: "
    expected = matta_jax.generate(
        models["ta"], prompt, num_tokens=6, sampling=Sampling(temperature=0)
    )[0].removeprefix(prompt)
    path = "/v1/chat/completions"
    body = {"model": "ta", "messages": messages, "max_completion_tokens": 6, "temperature": 0}
    answer = ask(client, path, logprobs=True, top_logprobs=2, **body)
    [choice] = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected}
    assert answer["object"] == "chat.completion"
    assert [len(token["top_logprobs"]) for token in choice["logprobs"]["content"]] == [2] * 6
    *chunks, last = events(client, path, stream_options={"include_usage": True}, **body)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta["content"] for delta in deltas) == expected
    assert deltas[0]["role"] == "assistant" and chunks[0]["object"] == "chat.completion.chunk"
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 6


def test_models_are_listed(client, models):
    data = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in data] == ["student", "d_ff=16,48,32", "ta"]
    for model in data:
        assert model["parameters"] == models[model["id"]].counts.parameters
        assert model["mb"] == 4 * model["parameters"] / 1e6 and model["quality"] is None
    assert data[1]["widths"] == [16, 48, 32]
    assert client.get("/v1/models/d_ff=16,48,32").json() == data[1]


def test_the_page_is_of_one_file_and_of_no_other_host(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    assert "http://" not in page.text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page.text and 'src="' not in page.text
    assert client.get("/health").json() == {"status": "ok"}


def metric(text, name):
    [line] = [line for line in text.splitlines() if line.startswith(f"matta_{name} ")]
    return float(line.rpartition(" ")[2])


def test_metrics_count(client):
    before = client.get("/metrics").text
    ask(client, model="student", prompt="the quick", max_tokens=7, temperature=0)
    after = client.get("/metrics").text
    for name, count in (
        ('tokens_total{spec="student"}', 7),
        ('text_seconds_count{spec="student"}', 1),
        ('texts_total{spec="student",reason="length"}', 1),
    ):
        assert metric(after, name) - metric(before, name) == count
    assert metric(after, "slots") == 3
    assert metric(after, "slots_busy") == metric(after, "queue_texts") == 0
    for line in after.splitlines():
        assert line.startswith(("# HELP matta_", "# TYPE matta_", "matta_"))


BAD = [
    (b"", "the body is no JSON"),
    (b"{", "the body is no JSON"),
    (b"\xff{}", "the body is no JSON"),
    (b'{"max_tokens": NaN}', "the body is no JSON"),
    (b"[" * 10_000, "the body is no JSON"),
    (b"[]", "the body must be a JSON object, not []"),
    ({"promt": "a"}, "'promt' is no field; did you mean 'prompt'?"),
    ({"prompt": 3}, "prompt=3 must be a text"),
    ({"prompt": []}, "prompt is an empty list"),
    ({"prompt": [["a"]]}, "prompt=['a'] must be a text"),
    ({"prompt": [1, "a"]}, "prompt=1 must be a text"),
    ({"prompt": [256]}, "a prompt's tokens must be from 0 to 255"),
    ({"prompt": [-1]}, "a prompt's tokens must be from 0 to 255"),
    ({"prompt": ["a"] * 65}, "prompt is a list of 65"),
    ({"prompt": "\ud800"}, "is not UTF-8"),
    ({"max_tokens": 0}, "max_tokens=0 must be from 1 to 64"),
    ({"max_tokens": 65}, "max_tokens=65 must be from 1 to 64"),
    ({"max_tokens": "9"}, "max_tokens='9' must be a whole number"),
    ({"max_tokens": 1.5}, "max_tokens=1.5 must be a whole number"),
    ({"temperature": -1}, "temperature=-1 must be 0"),
    ({"temperature": True}, "temperature=True must be a number"),
    ({"temperature": 10**400}, "must be a number below 1e30"),
    ({"top_p": 0}, "top_p=0 must be above 0"),
    ({"top_k": 0}, "top_k=0 must be at least 1"),
    ({"top_k": 2**40}, "must be a whole number below 2^31"),
    ({"min_p": 2}, "min_p=2 must be from 0 to 1"),
    ({"repetition_penalty": 0}, "repetition_penalty=0"),
    ({"frequency_penalty": 1}, "frequency_penalty=1 is not supported"),
    ({"n": 0}, "n=0 texts"),
    ({"n": 65}, "n=65 texts of 1 prompts must be from 1 to 64"),
    ({"best_of": 3}, "best_of=3 is not supported"),
    ({"suffix": "x"}, "suffix='x' is not supported"),
    ({"stop": 3}, "stop=3 must be a text"),
    ({"stop": [""]}, "stop has an empty string"),
    ({"stop": ["a"] * 17}, "stop is a list of 17"),
    ({"seed": -1}, "seed=-1 must be from 0"),
    ({"seed": 2**32}, "must be from 0"),
    ({"logprobs": 21}, "num_top=21 must be from 0 to 20"),
    ({"logprobs": 1, "echo": True}, "leave out echo"),
    ({"logit_bias": [1]}, "logit_bias=[1] must be an object"),
    ({"logit_bias": {"a": 1}}, "must be of tokens and numbers"),
    ({"logit_bias": {"256": 1}}, "logit_bias names token 256"),
    ({"logit_bias": {"1": 101}}, "101"),
    ({"stream": "yes"}, "stream='yes' must be true or false"),
    ({"stream_options": 3}, "stream_options=3 must be an object"),
    ({"model": "d_ff=17"}, "model='d_ff=17' is not served"),
    ({"model": 3}, "model=3 must be a text"),
    ({"model": "ta", "max_params": 9e9}, "is chosen already"),
    ({"max_params": 10}, "max_params=10 is too little: the smallest"),
    ({"max_params": -1}, "max_params=-1 must be above 0"),
    ({"max_ms_per_token": 1}, "no ms a token were measured"),
]


@pytest.mark.parametrize(("body", "words"), BAD, ids=[words for _, words in BAD])
def test_bad_requests_are_refused_in_a_line(client, body, words):
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = client.post("/v1/completions", content=content)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert words in error["message"] and error["type"] == "invalid_request_error"
    assert "\n" not in error["message"] and len(error["message"]) < 400


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "messages must be a list"),
        ({"messages": []}, "messages must be a list"),
        ({"messages": ["a"]}, "a message's role must be one of"),
        ({"messages": [{"role": "boss", "content": "a"}]}, "a message's role must be one of"),
        ({"messages": [{"role": "user", "content": 3}]}, "content must be a text, not 3"),
        ({"messages": [{"role": "user", "content": [3]}]}, "content must be a text, not [3]"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "refuses these messages: no tools"),
        ({"prompt": "a"}, "'prompt' is no field"),
        ({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 1}, "needs logprobs"),
        ({"messages": [{"role": "user", "content": "a"}], "logprobs": 1}, "true or false"),
    ],
)
def test_bad_conversations_are_refused_in_a_line(client, body, words):
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400 and words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/v1/completions", 405, "is not asked by GET"),
        ("POST", "/v1/models", 405, "is not asked by POST"),
        ("GET", "/v1/nothing", 404, "/v1/nothing is no page"),
        ("GET", "/v1/models/d_ff=17", 404, "model='d_ff=17' is not served"),
        ("GET", "/../setup.py", 404, "is no page"),
    ],
)
def test_pages_that_are_not_there(client, method, path, status, words):
    answer = client.request(method, path)
    assert answer.status_code == status and words in answer.json()["error"]["message"]


def test_a_large_body_is_refused(client):
    answer = client.post("/v1/completions", json={"prompt": "a" * 20_001})
    assert answer.status_code == 413
    assert "larger than 20000 bytes" in answer.json()["error"]["message"]


def test_what_one_server_has_not_another_may_have(run, tmp_path):
    app = make(run, Choice(checkpoint=str(run[1]), sub_models=["student"]),
               bounds=Bounds(api_key="secret"))  # fmt: skip
    with TestClient(app) as client:
        for path in ("/v1/models", "/metrics", "/v1/models/student"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"authorization": "Bearer wrong"}).status_code == 401
            answer = client.get(path, headers={"authorization": "Bearer secret"})
            assert answer.status_code == 200
        assert client.post("/v1/completions", json={}).status_code == 401
        assert client.get("/").status_code == client.get("/health").status_code == 200
        answer = client.post(
            "/v1/chat/completions", json={}, headers={"authorization": "Bearer secret"}
        )
        assert answer.status_code == 400
        assert "has no chat template" in answer.json()["error"]["message"]


def thread_of(app):
    """The engine's thread of an application."""
    [cell] = [cell for cell in app.router.lifespan_context.__wrapped__.__closure__
              if hasattr(cell.cell_contents, "engine")]  # fmt: skip
    return cell.cell_contents


def hold(thread, monkeypatch):
    """Holds an engine before its next turn, until what is returned is set."""
    go_on, step = threading.Event(), thread.engine.step
    monkeypatch.setattr(thread.engine, "step", lambda: go_on.wait(30) and step())
    return go_on


async def call(app, body, *, leave=None):
    """Asks an application for a text as a server does; the client leaves after `leave`."""
    sent, sends = [], [{"type": "http.request", "body": json.dumps(body).encode()}]

    async def receive():
        if sends:
            return sends.pop()
        await (asyncio.Event().wait() if leave is None else leave())
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [],
             "query_string": b"", "http_version": "1.1", "scheme": "http", "root_path": "",
             "raw_path": b"", "server": ("a", 1)}  # fmt: skip
    await app(scope, receive, send)
    return sent


async def within_lifespan(app, work):
    async with app.router.lifespan_context(app):
        return await work


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_gives_its_slot_back(run, monkeypatch, stream):
    app = make(run, Choice(checkpoint=str(run[1]), sub_models=["student"]), max_tokens=4000)
    thread = thread_of(app)
    go_on = hold(thread, monkeypatch)
    body = {"prompt": "the", "max_tokens": 4000, "n": 5, "stream": stream}

    async def work():
        async def leave():
            await asyncio.sleep(0.05)

        await call(app, body, leave=leave)
        assert thread.engine.is_busy
        go_on.set()

    asyncio.run(within_lifespan(app, work()))
    assert not thread.engine.is_busy
    assert thread.totals["student"].reasons == {"cancelled": 5}


def test_a_full_queue_is_429(run, monkeypatch):
    app = make(run, Choice(checkpoint=str(run[1]), sub_models=["student"]), slots=1, queue=2)
    thread = thread_of(app)
    go_on = hold(thread, monkeypatch)

    async def work():
        body = {"prompt": "the", "max_tokens": 2}
        waiting = [asyncio.ensure_future(call(app, body)) for _ in range(3)]
        while thread.engine.num_waiting < 3:
            await asyncio.sleep(0.01)
        start, answer = await call(app, body)
        go_on.set()
        answers = await asyncio.gather(*waiting)
        assert start["status"] == 429 and (b"retry-after", b"1") in start["headers"]
        assert "texts wait already" in json.loads(answer["body"])["error"]["message"]
        assert [sent[0]["status"] for sent in answers] == [200] * 3

    asyncio.run(within_lifespan(app, work()))
    assert thread.num_refused == 1


@pytest.mark.parametrize("stream", [False, True])
def test_what_takes_too_long_is_given_up(run, monkeypatch, stream):
    app = make(run, Choice(checkpoint=str(run[1]), sub_models=["student"]),
               bounds=Bounds(seconds=0.2))  # fmt: skip
    thread = thread_of(app)
    go_on = hold(thread, monkeypatch)

    async def work():
        start, *parts = await call(app, {"prompt": "the", "stream": stream})
        go_on.set()
        assert start["status"] == (200 if stream else 408)
        text = b"".join(part["body"] for part in parts).decode()
        error = json.loads(text.removeprefix("data: ").partition("\n")[0])["error"]
        assert "ask for fewer tokens" in error["message"]
        assert not stream or text.endswith("data: [DONE]\n\n")

    asyncio.run(within_lifespan(app, work()))
    assert thread.totals["student"].reasons == {"cancelled": 1}


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails_is_told_in_a_line(run, monkeypatch, stream):
    app = make(run, Choice(checkpoint=str(run[1]), sub_models=["student"]))
    thread = thread_of(app)

    def fail():
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(thread.engine, "step", fail)
    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.post("/v1/completions", json={"prompt": "the", "stream": stream})
        assert answer.status_code == (200 if stream else 503)
        assert "the engine has failed" in answer.text and "memory" not in answer.text
        assert client.get("/health").status_code == 503
        assert client.post("/v1/completions", json={}).status_code == 503


def test_a_defect_is_no_traceback(run, monkeypatch):
    app = make(run, Choice(checkpoint=str(run[1]), sub_models=["student"]))
    monkeypatch.setattr(thread_of(app), "submit", lambda requests: 1 / 0)
    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.post("/v1/completions", json={"prompt": "the"})
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "the server failed; its log says why"


@pytest.mark.parametrize(
    ("make_it", "words"),
    [
        (lambda: Bounds(body_bytes=0), "max_body_kb must be above 0"),
        (lambda: Bounds(seconds=0), "timeout=0 must be above 0"),
        (lambda: Bounds(api_key=" "), "api_key is empty"),
        (lambda: Settings(queue=0), "queue=0 must be at least 1"),
        (lambda: Settings(max_tokens=0), "max_tokens=0 must be at least 1"),
    ],
)
def test_bad_settings_are_refused(make_it, words):
    with pytest.raises(UserError, match=words):
        make_it()


def test_bad_templates_are_refused(run, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        make(run, chat_template=str(tmp_path / "none"))
    (tmp_path / "bad").write_text("{% for %}")
    with pytest.raises(UserError, match="is no template: .*; mend it"):
        make(run, chat_template=str(tmp_path / "bad"))
