"""How readable a package is, in figures: a row of Markdown for each folder.

    python experiments/benchmarks/readability.py [FOLDER ...]

Without a folder: `matta_jax/`. A code line is one that is not blank, not a comment alone and not
part of a docstring. Density is the number of syntax nodes (`ast.walk`) a code line: it tells how
much a reader meets on each. A comment line is one that holds a comment, also behind code. A binding
is a name that an assignment, an argument, a loop, a comprehension, a `with` or a walrus gives to a
value; a pronoun (`own`, `found`, `theirs`) says nothing of the value.
"""

import argparse
import ast
import dataclasses
import io
import pathlib
import tokenize
from collections.abc import Iterator, Sequence

ROOT = pathlib.Path(__file__).parents[2]
LONGEST_FUNCTION = 60
MOST_PARAMETERS = 6
PRONOUNS = frozenset(
    {
        "own",
        "one",
        "found",
        "whole",
        "taken",
        "kept",
        "left",
        "rest",
        "theirs",
        "ours",
        "other",
        "others",
        "both",
        "alone",
        "mine",
        "wanted",
        "known",
        "listed",
        "given",
        "every",
        "same",
    }
)
HEADER = (
    "folder",
    "code lines",
    "files",
    f"functions over {LONGEST_FUNCTION} lines",
    f"functions over {MOST_PARAMETERS} parameters, without keyword-only",
    "nodes a code line",
    "comment lines to code lines",
    "pronouns among bindings",
)

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclasses.dataclass(frozen=True)
class Binding:
    """A name that is given to a value, and its line."""

    name: str
    line: int


@dataclasses.dataclass(frozen=True)
class Readability:
    """The figures of a folder.

    Attributes:
      code_lines: without blank lines, comments and docstrings.
      files: Python files.
      long_functions: functions of more than `LONGEST_FUNCTION` lines without their docstring.
      wide_functions: functions of more than `MOST_PARAMETERS` parameters that may be positional.
      nodes: syntax nodes.
      comment_lines: lines with a comment.
      bindings: names that are given to values.
      pronouns: those of them that are a pronoun or a participle.
    """

    code_lines: int = 0
    files: int = 0
    long_functions: int = 0
    wide_functions: int = 0
    nodes: int = 0
    comment_lines: int = 0
    bindings: int = 0
    pronouns: int = 0

    def __add__(self, addend: "Readability") -> "Readability":
        sums = {
            field.name: getattr(self, field.name) + getattr(addend, field.name)
            for field in dataclasses.fields(self)
        }
        return Readability(**sums)

    @property
    def density(self) -> float:
        """Syntax nodes a code line."""
        return self.nodes / max(self.code_lines, 1)


def functions_of(tree: ast.Module) -> Iterator[tuple[str, Function]]:
    """Yields each function of a module with its qualified name, such as `Class.method`."""
    yield from _functions_below(tree, "")


def _functions_below(parent: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
    for node in ast.iter_child_nodes(parent):
        name = prefix
        if isinstance(node, ast.ClassDef | Function):
            name = f"{prefix}{node.name}."
        if isinstance(node, Function):
            yield prefix + node.name, node
        yield from _functions_below(node, name)


def length_of(function: Function) -> int:
    """Returns the lines of a function from its `def` to its end, without its docstring."""
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1 - len(_docstring_lines(function))


def num_parameters(function: Function) -> tuple[int, int]:
    """Returns how many positional and how many keyword-only parameters a function has, without
    `self` and `cls`.
    """
    arguments = function.args
    positional = [argument.arg for argument in arguments.posonlyargs + arguments.args]
    if positional[:1] in (["self"], ["cls"]):
        del positional[0]
    return len(positional), len(arguments.kwonlyargs)


def bindings_of(tree: ast.AST) -> Iterator[Binding]:
    """Yields the names that a module gives to values."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield Binding(node.id, node.lineno)
        elif isinstance(node, ast.arg):
            yield Binding(node.arg, node.lineno)
        elif isinstance(node, ast.ExceptHandler) and node.name is not None:
            yield Binding(node.name, node.lineno)


def pronouns_of(tree: ast.AST) -> list[Binding]:
    """Returns the bindings whose name says nothing of the value."""
    return [binding for binding in bindings_of(tree) if binding.name in PRONOUNS]


def measure_source(source: str) -> Readability:
    """Returns the figures of one file's text."""
    tree = ast.parse(source)
    functions = [function for _, function in functions_of(tree)]
    documented = set().union(*map(_docstring_lines, [tree, *_documented(tree)]))
    comments, code = _lines_of(source)
    return Readability(
        code_lines=len(code - documented),
        files=1,
        long_functions=sum(length_of(function) > LONGEST_FUNCTION for function in functions),
        wide_functions=sum(num_parameters(function)[0] > MOST_PARAMETERS for function in functions),
        nodes=sum(1 for _ in ast.walk(tree)),
        comment_lines=len(comments),
        bindings=sum(1 for _ in bindings_of(tree)),
        pronouns=len(pronouns_of(tree)),
    )


def measure(folder: pathlib.Path) -> Readability:
    """Returns the figures of all Python files below a folder."""
    files = sorted(folder.rglob("*.py"))
    return sum((measure_source(file.read_text()) for file in files), Readability())


def row(name: str, figures: Readability) -> list[str]:
    """Returns the cells of a folder, in the order of `HEADER`."""
    return [
        name,
        f"{figures.code_lines:,}",
        str(figures.files),
        str(figures.long_functions),
        str(figures.wide_functions),
        f"{figures.density:.1f}",
        f"1 in {figures.code_lines / max(figures.comment_lines, 1):.0f}",
        f"{figures.pronouns / max(figures.bindings, 1):.1%}",
    ]


def _documented(tree: ast.AST) -> list[ast.AST]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef | Function)]


def _docstring_lines(node: ast.AST) -> set[int]:
    """The lines of the docstring of a module, a class or a function."""
    body = getattr(node, "body", [])
    if not body or not isinstance(body[0], ast.Expr):
        return set()
    text = body[0].value
    if not isinstance(text, ast.Constant) or not isinstance(text.value, str):
        return set()
    assert text.end_lineno is not None
    return set(range(text.lineno, text.end_lineno + 1))


_LAYOUT = {
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def _lines_of(source: str) -> tuple[set[int], set[int]]:
    """Returns the lines that hold a comment, and those that hold code or a docstring."""
    comments: set[int] = set()
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in _LAYOUT:
            code.update(range(token.start[0], token.end[0] + 1))
    return comments, code


def table(folders: Sequence[pathlib.Path]) -> str:
    """Returns the figures of folders as a Markdown table."""
    lines = [HEADER, ["---"] + ["---:"] * (len(HEADER) - 1)]
    lines += [row(str(folder), measure(folder)) for folder in folders]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="*", type=pathlib.Path, default=[ROOT / "matta_jax"])
    print(table(parser.parse_args().folders))


if __name__ == "__main__":
    main()
