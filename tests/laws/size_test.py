"""Files, functions and lines fit on a screen and in a head, but for what is named here."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "matta_jax"

MOST_LINES = 400
MOST_FUNCTION_LINES = 60
MOST_PARAMETERS = 6
MOST_COLUMNS = 100

LONG_FILES: dict[str, str] = {}
LONG_LINES = {
    "matta_jax/data/tfds_text.py": "a command, to be copied",
}
LONG_FUNCTIONS: dict[str, str] = {}
MANY_PARAMETERS = {
    "matta_jax/config/_fields.py::field": "the keyword-only ones are the rules of a field",
    "matta_jax/data/_pipeline.py::training_batches": "keyword-only: the order of a stream",
    "matta_jax/distill/_objective.py::Objective.__call__": "keyword-only: where the loss is made",
    "matta_jax/distill/_pairs.py::Cosent.__call__": "as Objective.__call__",
    "matta_jax/distill/fused.py::nested_loss": "keyword-only: where the loss is made",
    "matta_jax/elastic/_extract.py::extract": "keyword-only: the settings of a public call",
    "matta_jax/evaluation/_evaluate.py::compare": "keyword-only: the settings of a public call",
    "matta_jax/evaluation/_evaluate.py::evaluate": "keyword-only: as compare",
    "matta_jax/nesting/_expand.py::expand": "keyword-only: the sizes of Student and TA",
    "matta_jax/optim/inspect.py::blocks_of": "keyword-only: the settings of a run",
    "matta_jax/packages/_formats.py::write_weights": "keyword-only: what stands beside the weights",
    "matta_jax/selection/_ranking.py::Ranking.__init__": "keyword-only: where scores lie, how many",
    "matta_jax/selection/_search.py::search": "keyword-only: the settings of a public call",
    "matta_jax/training/_loop.py::train": "keyword-only: the settings of a public call",
    "matta_jax/serving/_engine.py::Engine.__init__": "keyword-only: how texts are written",
    "matta_jax/starts/labelling.py::label": "keyword-only: the settings of a public call",
}


def sources(folder=PACKAGE):
    """Each file's path in the project, and its text."""
    for file in sorted(folder.rglob("*.py")):
        yield file.relative_to(ROOT).as_posix(), file.read_text()


def functions(readability):
    """Each function's `path::qualified.name`, and its tree."""
    for path, source in sources():
        for name, function in readability.functions_of(ast.parse(source)):
            yield f"{path}::{name}", function


def test_a_file_fits_in_the_head(assert_excepted):
    sizes = {path: len(source.splitlines()) for path, source in sources()}
    offenders = {path: size for path, size in sizes.items() if size > MOST_LINES}
    assert_excepted(offenders, LONG_FILES, f"files of more than {MOST_LINES} lines")


def test_a_function_fits_on_a_screen(readability, assert_excepted):
    sizes = {name: readability.length_of(function) for name, function in functions(readability)}
    offenders = {name: size for name, size in sizes.items() if size > MOST_FUNCTION_LINES}
    law = f"functions of more than {MOST_FUNCTION_LINES} lines without their docstring"
    assert_excepted(offenders, LONG_FUNCTIONS, law)


def test_a_function_has_few_parameters(readability, assert_excepted):
    offenders = {}
    for name, function in functions(readability):
        positional, keyword_only = readability.num_parameters(function)
        if positional + keyword_only > MOST_PARAMETERS:
            offenders[name] = f"{positional} and {keyword_only} keyword-only"
    law = f"functions of more than {MOST_PARAMETERS} parameters"
    assert_excepted(offenders, MANY_PARAMETERS, law)


def test_a_line_fits_in_its_columns(assert_excepted):
    """Ruff's law; it, too, does not count a pragma, which must stand behind its code."""
    offenders = {}
    for path, source in sources():
        lines = [re.sub(r"  # (type: ignore|noqa).*", "", line) for line in source.splitlines()]
        if max(map(len, lines), default=0) > MOST_COLUMNS:
            offenders[path] = max(map(len, lines))
    assert_excepted(offenders, LONG_LINES, f"files with lines of more than {MOST_COLUMNS} columns")


def test_the_measures_count_what_they_say(readability, assert_excepted):
    source = '''
class Box:
    def open(self, a, b, *, c):
        """Opens it.

        At once.
        """
        def inner(d):
            return d

        return inner(a) + b + c
'''
    [(outer, open_), (name, inner)] = readability.functions_of(ast.parse(source))
    assert (outer, name) == ("Box.open", "Box.open.inner")
    assert (readability.length_of(open_), readability.length_of(inner)) == (5, 2)
    assert readability.num_parameters(open_) == (2, 1)
    with pytest.raises(AssertionError, match=r"too long: a \(7\)"):
        assert_excepted({"a": 7}, {}, "too long")
    with pytest.raises(AssertionError, match="not needed: a"):
        assert_excepted({}, {"a": "reason"}, "too long")
