"""No room but storage touches a file: read from the syntax, so that no name in a text is a hit."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[2] / "matta_jax"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "storage")

MODULES = {"pathlib", "shutil", "tempfile", "glob", "io", "fileinput"}
OF_OS = {
    "chmod", "fdopen", "fsync", "link", "listdir", "makedirs", "mkdir", "open", "path", "remove",
    "removedirs", "rename", "renames", "replace", "rmdir", "scandir", "symlink", "truncate",
    "unlink", "walk",
}  # fmt: skip
OF_A_PATH = {
    "chmod", "glob", "hardlink_to", "iterdir", "link_to", "mkdir", "open", "read_bytes",
    "read_text", "rename", "rglob", "rmdir", "symlink_to", "touch", "unlink", "write_bytes",
    "write_text",
}  # fmt: skip

EXCEPTIONS = {
    # Output whose reader went away is let go to nowhere: a descriptor, and no file.
    "bin/_output.py": {"os.open"},
    # tensorstore opens an array of the store that `storage.kvstore` names.
    "checkpoints/_stored.py": {"ts.open"},
    # Pillow decodes bytes that were read before.
    "data/_images.py": {"….open"},
    # A program is looked up on the path.
    "packages/gguf/_quantiser.py": {"import shutil"},
}


def hits(source):
    """Yields what touches a file, as `object.name`, and its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
            yield from ((f"import {name}", node.lineno) for name in names if name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            if node.module in MODULES:
                yield f"import {node.module}", node.lineno
            if node.module == "os":
                names = [alias.name for alias in node.names]
                yield from ((f"os.{name}", node.lineno) for name in names if name in OF_OS)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "os" and node.attr in OF_OS:
                yield f"os.{node.attr}", node.lineno
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, str) and "file://" in node.value:
                yield "file://", node.lineno
        elif isinstance(node, ast.Call):
            yield from call_hits(node)


def call_hits(call):
    function = call.func
    if isinstance(function, ast.Name):
        if function.id == "open":
            yield "open", call.lineno
        return
    if not isinstance(function, ast.Attribute):
        return
    of = function.value.id if isinstance(function.value, ast.Name) else "…"
    if of in ("storage", "os"):
        return
    if function.attr in OF_A_PATH:
        yield f"{of}.{function.attr}", call.lineno
    # A text is replaced by another, a dataclass by its fields; a path by a single path.
    if function.attr == "replace" and len(call.args) == 1 and not call.keywords:
        yield f"{of}.replace", call.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_room_touches_a_file(path):
    name = str(path.relative_to(PACKAGE))
    excused = EXCEPTIONS.get(name, set())
    strangers = [(hit, line) for hit, line in hits(path.read_text()) if hit not in excused]
    assert not strangers, f"{name} touches files; use matta_jax.storage: {strangers}"


def test_every_exception_is_still_needed():
    for name, excused in EXCEPTIONS.items():
        assert excused <= {hit for hit, _ in hits((PACKAGE / name).read_text())}


@pytest.mark.parametrize(
    "line",
    [
        "import pathlib",
        "from pathlib import Path",
        "import shutil",
        "import glob",
        "import tempfile",
        "from os import rename",
        "open('x')",
        "path.open('a')",
        "(folder / 'x').open()",
        "gzip.open('x')",
        "os.rename(a, b)",
        "os.replace(a, b)",
        "os.open('x', 0)",
        "os.path.exists('x')",
        "rename = os.rename",
        "path.rename(place)",
        "beside.replace(path)",
        "(folder / 'x').replace(path)",
        "path.mkdir()",
        "path.write_text('x')",
        "path.write_bytes(b'x')",
        "path.read_text()",
        "path.unlink()",
        "path.chmod(0o644)",
        "path.symlink_to(place)",
        "folder.glob('*')",
        "f'file://{path}/'",
    ],
)
def test_what_touches_a_file_is_seen(line):
    assert list(hits(line))


@pytest.mark.parametrize(
    "line",
    [
        "storage.read_text(path)",
        "storage.match(folder, '*')",
        "storage.glob(pattern)",
        "jax.checkpoint_open(x)",
        "dataclasses.replace(config, x=1)",
        "text.replace('a', 'b')",
        "safetensors.safe_open(path, 'np')",
        "open_model(folder)",
        "path.is_file()",
        "'open(path)'",
        "os.environ['HOME']",
        "lax.rename_axis(x)",
    ],
)
def test_what_does_not_is_not(line):
    assert not list(hits(line))
