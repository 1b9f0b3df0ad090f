import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


def test_the_first_two_blocks_are_the_two_commands():
    assert "matta-quickstart --config=configs/quickstart.py" in BLOCKS[0]
    assert BLOCKS[1].splitlines()[-1] == "python -m pytest" and "pip install" in BLOCKS[1]


def test_every_command_names_real_binaries_flags_fields_and_configs(check_commands):
    assert check_commands(README) >= 6


def test_it_is_read_in_one_sitting():
    assert len(README.splitlines()) <= 200


def test_it_leads_to_every_page():
    """Or the first page of the site does."""
    links = set(re.findall(r"\]\(docs/(\w+\.md)\)", README))
    index = (ROOT / "docs" / "index.md").read_text()
    links |= {"index.md", *re.findall(r"\]\((\w+\.md)\)", index)}
    assert links == {path.name for path in (ROOT / "docs").glob("*.md")}


def test_the_map_names_every_room():
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"^\| `([\w./]+/[\w./]*)` \|", page, re.MULTILINE))
    for path in (ROOT / "matta_jax").iterdir():
        if path.name not in ("__init__.py", "__pycache__", "py.typed"):
            assert f"matta_jax/{path.name}{'/' if path.is_dir() else ''}" in named, path
    assert all((ROOT / name).exists() for name in named)


def test_every_extra_named_is_there():
    extras = re.search(r"Extras: (.*?)\.\n", README, re.DOTALL)[1]
    setup = (ROOT / "setup.py").read_text()
    assert all(f'"{extra}": ' in setup for extra in re.findall(r"`([\w-]+)`", extras))
