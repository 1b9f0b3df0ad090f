"""The house is the data flow: a module imports only from rooms above its own."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "matta_jax"
ROOMS = [
    "errors",
    "deprecations",
    "stops",
    "storage",
    "reporting",
    "config",
    "nesting",
    "sharding",
    "models",
    "distill",
    "optim",
    "tokenizers",
    "data",
    "checkpoints",
    "packages",
    "starts",
    "elastic",
    "selection",
    "serving",
    "training",
    "evaluation",
    "_quickstart",
    "sweeps",
    "federated",
    "bin",
]
WITHOUT_TRAINING = ("packages", "starts", "elastic", "selection", "serving", "evaluation")


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "matta_jax" and len(parts) > 1 and parts[1] in ROOMS:
                yield parts[1]


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_modules_import_only_from_rooms_above(path):
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if room == "__init__":
        return
    for imported in imported_rooms(path):
        assert ROOMS.index(imported) <= ROOMS.index(room), f"{room} imports {imported}"
        assert not (imported == "training" and room in WITHOUT_TRAINING)


@pytest.mark.parametrize("room", ROOMS)
def test_private_modules_are_used_in_their_own_room_alone(room):
    modules = sorted(PACKAGE.glob(f"{room}.py")) + sorted((PACKAGE / room).rglob("*.py"))
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            parts = node.module.split(".")
            if parts[0] == "matta_jax" and parts[1:2] not in ([room], []):
                inner = [*parts[2:], *(alias.name for alias in node.names)]
                assert not any(name.startswith("_") for name in inner), (
                    f"{path} imports {node.module}"
                )


def test_nesting_is_pure():
    for path in (PACKAGE / "nesting").glob("*.py"):
        assert "flax" not in path.read_text().replace("no flax", "")


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        (
            "matta_jax.bin.extract, matta_jax.elastic",
            ("matta_jax.data", "matta_jax.training", "tensorflow", "torch"),
        ),
        (
            "matta_jax.evaluation, matta_jax.selection",
            ("matta_jax.training", "tensorflow", "torch"),
        ),
    ],
)
def test_extraction_and_scoring_load_no_training_code_and_no_heavy_library(modules, unwanted):
    code = (
        f"import sys, {modules}; bad = [m for m in {unwanted} if m in sys.modules]; "
        "sys.exit(repr(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
