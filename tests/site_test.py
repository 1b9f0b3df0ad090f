"""The site: every page has its place, what pages say is true of the code, and it is built."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import matta_jax

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def module_of(name):
    """A Python file of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def site_pages():
    pytest.importorskip("mkdocs")
    return module_of("site_pages")


@pytest.fixture
def environment():
    """That of a user: the tests' compiler flags make slow programs."""
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    scripts = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PATH": scripts}


def test_every_page_has_its_place():
    listed = re.findall(r"^ +- (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_says_who_it_is_for_and_shows_python_that_is_python(page):
    text = page.read_text()
    assert page.name == "index.md" or "or whoever" in text.partition("\n## ")[0], "who is it for?"
    for language, block in BLOCK.findall(text):
        assert language in ("sh", "python", "text", "json"), language or "no language"
        if language == "python":
            compile(block, page.name, "exec")


def test_errors_of_the_page_are_those_of_the_program():
    words = re.findall(r"^## `(.+)`$", (DOCS / "faq.md").read_text(), re.MULTILINE)
    sources = "\n".join(path.read_text() for path in (ROOT / "matta_jax").rglob("*.py"))
    # What stands in two lines of a source is one text.
    sources = re.sub(r'"\n\s+f?"', "", sources)
    assert len(words) > 10 and [text for text in words if text not in sources] == []


def test_the_reference_has_every_public_name(site_pages):
    calls, rooms = site_pages.calls_page(), site_pages.rooms_page()
    for name, room in matta_jax._HOMES.items():
        assert f"::: matta_jax.{room}.{name}\n" in calls
    for room, name in (("packages", "Packaging"), ("selection", "Budget"), ("nesting", "Nest")):
        part = rooms.partition(f"::: matta_jax.{room}\n")[2].partition(":::")[0]
        assert re.search(rf"[\[ ]{name}[,\]]", part), (room, name)
    # The calls stand on a page of their own, and once.
    assert not re.search(r"[\[ ]extract[,\]]", rooms)


def test_every_field_is_on_its_page(site_pages):
    from matta_jax.config import field_names

    page = site_pages.fields_page()
    assert [name for name in field_names() if f"--config.{name} " not in page] == []


def test_links_out_of_the_folder_are_names_and_pictures_move(site_pages):
    text = "[a](../SECURITY.md), ![b](../experiments/c.png) and [d](data.md)"
    expected = "`SECURITY.md`, ![b](experiments/c.png) and [d](data.md)"
    assert site_pages.on_page_markdown(text) == expected


@pytest.mark.parametrize(
    "name",
    ["nest", "member", "mix", "spec", pytest.param("certificate", marks=pytest.mark.slow)],
)
def test_a_picture_is_what_the_library_draws(name, tmp_path):
    """The last is slow: it trains."""
    image = pytest.importorskip("matplotlib.image")
    pictures = module_of("pictures")
    drawn = image.imread(pictures.draw(name, tmp_path))
    stored = image.imread(DOCS / "pictures" / f"{name}.png")
    # Letters differ a little between versions of matplotlib.
    assert drawn.shape == stored.shape and np.abs(drawn - stored).mean() < 0.01
    assert f"](pictures/{name}.png)" in (DOCS / "concepts.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_site_is_built_without_a_warning(tmp_path, environment):
    """Slow: reads the whole package."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
    assert done.returncode == 0 and "WARNING -" not in done.stderr, done.stderr
    calls = (tmp_path / "reference" / "calls" / "index.html").read_text()
    assert 'id="matta_jax.elastic.extract"' in calls
    assert (tmp_path / "pictures" / "nest.png").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_first_page_runs_word_by_word(tmp_path, environment):
    """Slow: it trains the quickstart, which is to end where the README says."""

    def run(*blocks):
        return subprocess.run(
            ["bash", "-euc", "".join(blocks)],
            cwd=tmp_path,
            env=environment,
            text=True,
            capture_output=True,
        )

    page = (DOCS / "start.md").read_text().partition("## Train")[2]
    blocks = [block for language, block in BLOCK.findall(page) if language == "sh"]
    assert len(blocks) == 4 and "matta-quickstart" in blocks[0]
    done = run(*blocks)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    folder = tmp_path / "runs" / "quickstart"
    assert (folder / "report.md").is_file() and (folder / "accuracy_vs_size.png").is_file()
    assert len([*(folder / "models").glob("*/manifest.json")]) == 7

    first = json.loads((folder / "report.json").read_text())
    bits_by_name = {row["name"]: next(iter(row["scores"].values())) for row in first["models"]}
    assert len(bits_by_name) == 7
    # Small to large, and each better than the one before it.
    bits = list(bits_by_name.values())
    assert bits == sorted(bits, reverse=True), bits_by_name
    ta, student = bits_by_name["ta"], bits_by_name["student"]
    gzip_bits = first["notes"]["baselines"]["gzip -9"]
    assert ta < min(2.15, gzip_bits) and student > 1.05 * ta, bits_by_name
    assert first["notes"]["sample"].startswith("def ")

    assert run(blocks[0]).returncode == 0  # Finished work is kept.
    assert json.loads((folder / "report.json").read_text())["models"] == first["models"]
