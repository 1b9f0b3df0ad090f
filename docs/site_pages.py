"""Hooks of mkdocs: pages that are made of the code, and links that lead out of docs/."""

import ast
import pathlib
import re
from typing import Any

from mkdocs.structure.files import File, Files

from matta_jax.config import describe_fields

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "matta_jax"

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((\.\./[^)#\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of the reference, and the pictures of experiments that pages show."""
    pages = {"calls": calls_page(), "fields": fields_page(), "rooms": rooms_page()}
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    texts = [file.content_string for file in files.documentation_pages()]
    for is_picture, _, place in _LINK.findall("".join(texts)):
        source = place.removeprefix("../")
        if is_picture and files.get_file_from_path(source) is None:
            files.append(File.generated(config, source, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Pictures from outside of docs/ lie beside the pages of the site; other files have no page
    there, and are named.
    """

    def replaced(link: re.Match[str]) -> str:
        is_picture, text, place = link.groups()
        source = place.removeprefix("../")
        return f"![{text}]({source})" if is_picture else f"`{source}`"

    return _LINK.sub(replaced, markdown)


def calls_page() -> str:
    """What `matta_jax` has by itself, each with its docstring."""
    about = "For whoever calls the library from Python: what `import matta_jax` has."
    examples = (
        "The examples name a run, `runs/books`, and models of it; `config` is a `Config`. Tests "
        "run them as they stand (`tests/examples_test.py`), on models of a few thousand parameters."
    )
    lines = ["# Calls", "", about, "", examples, ""]
    for name, room in homes().items():
        lines += [f"::: matta_jax.{room}.{name}", ""]
    return "\n".join(lines)


def homes() -> dict[str, str]:
    """The room of each public name of `matta_jax`."""
    for node in ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_HOMES":
            return dict(sorted(ast.literal_eval(node.value).items()))
    raise ValueError("matta_jax/__init__.py has no _HOMES")


def fields_page() -> str:
    """Every field of a config, as `--help_config` tells it."""
    lines = [
        "# Fields of a config",
        "",
        "For whoever writes or overrides a config: each is set by its flag over any file, and "
        "`matta-train --help_config` prints the same.",
    ]
    for part in describe_fields().split("\n\n"):
        heading, _, fields = part.strip("\n").partition("\n")
        section, _, meaning = heading.partition(": ")
        lines += ["", f"## {section}", "", meaning, "", "```text", fields, "```"]
    return "\n".join(lines) + "\n"


def rooms_page() -> str:
    """The public names of each room that `calls_page` has not, with their docstrings."""
    calls = {(room, name) for name, room in homes().items()}
    lines = ["# Rooms", "", "For whoever builds on a part: the public names of each room.", ""]
    for init in sorted(PACKAGE.glob("*/__init__.py")):
        names = [name for name in public_names(init) if (init.parent.name, name) not in calls]
        if init.parent.name == "bin" or not names:
            continue
        members = ", ".join(names)
        lines += [f"## matta_jax.{init.parent.name}", ""]
        lines += [f"::: matta_jax.{init.parent.name}", "    options:"]
        lines += ["      show_root_heading: false", f"      members: [{members}]", ""]
    return "\n".join(lines)


def public_names(init: pathlib.Path) -> list[str]:
    """The names that a room hands out."""
    names = []
    for node in ast.parse(init.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            names += [alias.asname for alias in node.names if alias.asname == alias.name]
    return sorted(name for name in names if name and not name.startswith("_"))
