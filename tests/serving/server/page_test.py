"""The page to try budgets, in a headless browser and by its keyboard."""

import json
import re
import socket
import threading
import time

import pytest

pytest.importorskip("starlette")
pytest.importorskip("playwright", reason="needs the extra browser-test")

import uvicorn
from playwright.sync_api import expect

from matta_jax.checkpoints import open_source
from matta_jax.serving import Choice
from matta_jax.serving.server import Bounds, Settings, load_app

slow = pytest.mark.slow  # A browser, and an engine that compiles.
QUALITY = {"student": 3.0, "d_ff=32": 2.9, "d_ff=48,32*2": 2.8, "ta": 2.5}
DONE = re.compile(r"^30 tokens")
SECONDS = 120_000  # In milliseconds: an engine's first text is compiled for.


@pytest.fixture(scope="module")
def search(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    rows = [
        {"spec": spec, "verified": bits, "loss": bits, "ms": 0.5, "numbers": None}
        for spec, bits in QUALITY.items()
    ]
    document = {
        "fingerprint": open_source(str(run[1])).fingerprint,
        "workload": {"mode": "decode"},
        "rows": [row | {"dominated": False} for row in rows],
    }
    (folder / "search.json").write_text(json.dumps(document))
    return str(folder)


@pytest.fixture(scope="module")
def serve(run):
    """`serve(choice, settings)`: the address of a server on a socket."""
    servers = []

    def start(settings=None, **choice):
        app, _ = load_app(Choice(checkpoint=str(run[1]), **choice), settings or Settings(slots=2))
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        servers.append((server, thread, listener))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{listener.getsockname()[1]}/"

    yield start
    for server, thread, listener in servers:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="module")
def address(serve, search):
    return serve(search=search, draft="student")


def sides(page):
    return [page.get_by_label("First budget"), page.get_by_label("Second budget")]


def slider(side):
    return side.get_by_role("slider", name="Budget")


@slow
def test_texts_stream_as_a_prompt_is_typed(open_page, address):
    page = open_page(address)
    first, second = sides(page)
    expect(first.locator(".name")).to_have_text("student")
    expect(second.locator(".name")).to_have_text("ta")
    expect(page.get_by_label("Prompt")).to_be_focused()

    page.get_by_label("Tokens").fill("30")
    page.get_by_label("Prompt").press("Control+A")
    page.keyboard.type("the quick")
    for side in (first, second):
        expect(side.locator(".rate")).to_have_text(DONE, timeout=SECONDS)
        expect(side.locator(".prompt")).to_have_text("the quick")
        assert len(side.locator(".text span").all()) == 31
    # Against itself nothing is drafted.
    assert not first.locator(".text .drafted").all() and second.locator(".text .drafted").all()
    share = len(second.locator(".text .drafted").all()) / 30
    expect(second.locator(".rate")).to_have_text(re.compile(f"{share:.0%} drafted"))

    # The same question has the same text.
    texts = [side.locator(".text").inner_text() for side in (first, second)]
    page.keyboard.press("Control+Enter")
    expect(second.locator(".rate")).to_have_text(DONE, timeout=SECONDS)
    expect(first.locator(".rate")).to_have_text(DONE, timeout=SECONDS)
    assert [side.locator(".text").inner_text() for side in (first, second)] == texts


@slow
def test_a_budget_moves_by_the_keyboard(open_page, address):
    page = open_page(address)
    first, second = sides(page)
    page.get_by_label("Tokens").fill("30")
    for side in (first, second):
        expect(side.locator(".rate")).to_have_text(DONE, timeout=SECONDS)
    asked = []
    page.on("request", lambda request: asked.append(request.post_data_json["model"]))

    budget = slider(first)
    budget.focus()
    bars = first.locator("rect.bar")
    heights = []
    for key, spec in (
        ("Home", "student"),
        ("ArrowRight", "d_ff=32"),
        ("ArrowRight", "d_ff=48,32*2"),
        ("ArrowUp", "ta"),
        ("ArrowRight", "ta"),
        ("ArrowLeft", "d_ff=48,32*2"),
    ):
        page.keyboard.press(key)
        expect(first.locator(".name")).to_have_text(spec)
        assert budget.get_attribute("aria-valuetext").startswith(f"{spec}: ")
        expect(first.locator(".cost")).to_contain_text(f"{QUALITY[spec]:.3f} bits per byte")
        heights.append([float(bar.get_attribute("height")) for bar in bars.all()])
        # The thumb stands over its point of the curve.
        box, point = budget.bounding_box(), first.locator("circle.chosen").bounding_box()
        at = 8 + (box["width"] - 16) * int(budget.input_value()) / 10_000
        assert abs(box["x"] + at - point["x"] - point["width"] / 2) < 1
    # The widths of the layers, of 44 pixels for 48.
    student, ta = heights[0], heights[3]
    assert student == pytest.approx([44 / 3, 44 / 3, 0]) and ta == [44, 44, 44]
    assert heights[-1] == pytest.approx([44, 44 * 2 / 3, 44 * 2 / 3])

    # The last one is written, and the budget beside it is let be: of the TA only this one asked.
    page.wait_for_timeout(500)
    expect(first.locator(".rate")).to_have_text(DONE, timeout=SECONDS)
    assert asked[-1] == "d_ff=48,32*2" and asked.count("ta") <= 1


@slow
def test_a_long_text_is_stopped_and_goes_no_further(open_page, address):
    page = open_page(address)
    page.get_by_label("Write as I type").uncheck()
    page.get_by_label("Tokens").fill("4000")
    page.get_by_label("Prompt").press("Control+Enter")
    _, second = sides(page)
    expect(second.locator(".rate")).to_have_text(re.compile(r"a second"), timeout=SECONDS)
    page.keyboard.press("Escape")
    page.wait_for_timeout(200)
    text = second.locator(".text").inner_text()
    page.wait_for_timeout(500)
    assert second.locator(".text").inner_text() == text
    assert not second.locator(".rate").inner_text().startswith("4,000 tokens")
    assert not second.locator(".error").inner_text()


@slow
def test_what_is_wrong_is_told(open_page, serve):
    bounds = Bounds(api_key="secret")
    page = open_page(serve(Settings(slots=2, bounds=bounds)), refusals=True)
    first, _ = sides(page)
    expect(first.get_by_role("alert")).to_contain_text("the api key is missing or wrong")
    page.get_by_label("API key").fill("secret")
    page.keyboard.press("Tab")
    expect(first.get_by_role("alert")).to_be_empty()
    expect(first.locator("svg")).to_contain_text("quality: not measured")
    page.get_by_label("Tokens").fill("5000")
    page.get_by_label("Tokens").press("Enter")
    expect(first.get_by_role("alert")).to_contain_text("max_tokens=5000 must be from 1 to 4096")
