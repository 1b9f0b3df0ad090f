"""Experiments and configs are written as a user would write them: with public names alone."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDERS = ("configs", "experiments")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def imported_names(tree):
    """Yields each name that is imported from matta_jax, and each attribute that is read of one."""
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "matta_jax":
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                modules[alias.asname or alias.name] = name
                yield name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] != "matta_jax":
                    continue
                # `import matta_jax.nesting` binds the package; `as` binds the module itself.
                if alias.asname:
                    modules[alias.asname] = alias.name
                else:
                    modules["matta_jax"] = "matta_jax"
                yield alias.name

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            base, _, attributes = name.partition(".")
            if base in modules:
                yield f"{modules[base]}.{attributes}"


def private_names(source):
    """The names of matta_jax in a file that are private, sorted."""
    names = set(imported_names(ast.parse(source)))
    return sorted(
        name
        for name in names
        if any(part.startswith("_") and not part.startswith("__") for part in name.split("."))
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_uses_public_names_of_the_library_alone(path):
    assert private_names(path.read_text()) == []


@pytest.mark.parametrize(
    ("source", "private"),
    [
        ("from matta_jax.packages import to_hf", []),
        ("from matta_jax.packages._hf import to_hf", ["matta_jax.packages._hf.to_hf"]),
        ("from matta_jax.training import _step", ["matta_jax.training._step"]),
        ("import matta_jax._quickstart", ["matta_jax._quickstart"]),
        ("from matta_jax import elastic\nelastic._extract.run()", ["matta_jax.elastic._extract"]),
        ("import matta_jax as m\nm._quickstart", ["matta_jax._quickstart"]),
        ("import jax._src\nfrom matta_jax import nesting\nnesting.__doc__", []),
    ],
)
def test_private_names_are_found(source, private):
    found = private_names(source)
    assert all(any(name.startswith(expected) for name in found) for expected in private)
    assert bool(found) == bool(private)
