"""What those who host and cite the project read, beside its code."""

import pathlib
import re
import shutil
import subprocess

import pytest

import matta_jax

ROOT = pathlib.Path(__file__).parents[1]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def read(path):
    return pytest.importorskip("yaml").safe_load((ROOT / path).read_text())


def test_changes_and_citation_are_of_this_version():
    [newest, *_] = re.findall(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = read("CITATION.cff")
    assert newest == citation["version"] == matta_jax.__version__
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["license"] == "Apache-2.0"


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_issue_forms_ask_in_fields_that_have_names(form):
    content = read(form)
    if form.stem == "config":
        assert set(content) <= {"blank_issues_enabled", "contact_links"}
        return
    assert content["name"] and content["description"] and content["body"]
    ids = [part["id"] for part in content["body"]]
    assert len(ids) == len(set(ids))
    for part in content["body"]:
        assert part["type"] in ("textarea", "input", "dropdown") and part["attributes"]["label"]


def test_contributing_sets_up_in_three_commands():
    [block, *_] = re.findall(r"```sh\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    commands = block.splitlines()
    assert len(commands) == 3 and "'.[dev]'" in commands[1] and commands[2] == "python -m pytest"


TOP = """.ci .gitattributes .github .gitignore CHANGELOG.md CITATION.cff CONTRIBUTING.md LICENSE
MANIFEST.in README.md SECURITY.md configs docs experiments matta_jax mkdocs.yml pyproject.toml
setup.py tests"""


def test_nothing_that_a_test_or_a_run_left_is_committed():
    git = shutil.which("git")
    listed = git and subprocess.run([git, "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if not listed or listed.returncode:
        pytest.skip("is no checkout of git")
    assert {file.split("/")[0] for file in listed.stdout.splitlines()} == set(TOP.split())
