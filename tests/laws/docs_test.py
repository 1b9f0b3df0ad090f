"""No text names a page that the project does not have."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PLACES = ("matta_jax", "experiments", "tests", "configs", "docs", ".github")
KINDS = (".py", ".md", ".sh", ".yaml", ".yml", ".ipynb", ".toml")
DECISIONS = "docs/decisions.md"

# Those beside them, and those whose commands are a user's; each folder of `experiments` has its
# page, whose commands are scripts.
TOP_PAGES = sorted(ROOT.glob("*.md"))
PAGES = [*TOP_PAGES, *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob(".github/*.md"))]

# Pages that a run, a search or a sweep writes.
WRITTEN = ("cascade.md", "report.md", "search.md", "sweep.md")

# Names of pages that are not there, and why they stand.
MISSING = {"tests/storage/storage_test.py: c.md": "a file that the test writes"}


def project_files():
    """The files whose text is read, without this one, which is about such names."""
    yield from TOP_PAGES
    for place in PLACES:
        for file in sorted((ROOT / place).rglob("*")):
            is_text = file.is_file() and (file.suffix in KINDS or file.name == "Dockerfile")
            if is_text and file != pathlib.Path(__file__):
                yield file


@pytest.fixture(scope="module")
def pages():
    """All pages of the project, from its root."""
    return {file.relative_to(ROOT).as_posix() for file in project_files() if file.suffix == ".md"}


def missing_pages(text, pages):
    """The names of pages in a text that are none of `pages`, and `decision N` without a page."""
    # A page of another project is named by its address.
    names = re.findall(r"[\w./-]*\w\.md\b", re.sub(r"https?://\S+", "", text))
    missing = []
    for name in names:
        # Each folder's README may name a page by its place from there.
        tail = "/" + re.sub(r"^(\.{0,2}/)+", "", name)
        exists = any(f"/{page}".endswith(tail) for page in pages)
        if not exists and tail[1:] not in WRITTEN:
            missing.append(name)

    if DECISIONS not in pages or DECISIONS not in text:
        missing += re.findall(r"\bdecisions?[\s#]+\d+", text)
    return missing


def test_each_page_that_is_named_exists(pages, assert_excepted):
    missing = {}
    for file in project_files():
        path = file.relative_to(ROOT).as_posix()
        for name in missing_pages(file.read_text(), pages):
            missing[f"{path}: {name}"] = name
    assert_excepted(missing, MISSING, "names of pages that the project does not have")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_pages_are_real(page, check_commands):
    check_commands(page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_pages_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        assert "://" in link or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_pages_name_are_there(page):
    for file, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", page.read_text()):
        assert f"def {name}(" in (ROOT / file).read_text(), name


def test_what_a_text_names_is_found():
    pages = {"README.md", "docs/decisions.md", "experiments/scale/README.md"}
    text = "see architecture.md, decision 12; scale/README.md, ../README.md and report.md"
    assert missing_pages(text, pages) == ["architecture.md", "decision 12"]
    assert missing_pages("docs/decisions.md, decision 12", pages) == []
    assert missing_pages("docs/decisions.md, decision 12", {"README.md"}) == [
        "docs/decisions.md",
        "decision 12",
    ]
    assert missing_pages("a decision\n# 12", pages) == ["decision\n# 12"]
    assert missing_pages("scale/other.md and quick/README.md", pages) == [
        "scale/other.md",
        "quick/README.md",
    ]
