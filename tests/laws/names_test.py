"""A value is named by a noun that says what it is, and not by a pronoun or a participle."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# Bindings named `own`, `found`, `whole` and the like, and why they stay.
PRONOUNS = {
    "matta_jax/optim/_state.py: rest": "the path of a leaf in every checkpoint that there is",
    "matta_jax/reporting.py: left": "a side, not what remains: the columns that are flush left",
}


def test_no_value_is_named_by_a_pronoun(readability, assert_excepted):
    pronouns = {}
    for file in sorted((ROOT / "matta_jax").rglob("*.py")):
        path = file.relative_to(ROOT).as_posix()
        for binding in readability.pronouns_of(ast.parse(file.read_text())):
            pronouns[f"{path}: {binding.name}"] = binding.line
    assert_excepted(pronouns, PRONOUNS, "values named by a pronoun or a participle")


@pytest.mark.parametrize(
    "source",
    [
        "own = 1",
        "a, (own, b) = c",
        "own: int = 1",
        "own += 1",
        "def f(own): pass",
        "def f(*own): pass",
        "def f(*, own): pass",
        "lambda own: 1",
        "for own in a: pass",
        "[1 for own in a]",
        "with a as own: pass",
        "try: pass\nexcept A as own: pass",
        "if own := a: pass",
    ],
)
def test_each_kind_of_binding_counts(readability, source):
    assert [binding.name for binding in readability.pronouns_of(ast.parse(source))] == ["own"]


@pytest.mark.parametrize("source", ["a = own", "a.own = 1", "f(own=1)", "own_rows = 1", "own()"])
def test_uses_do_not_count(readability, source):
    assert not readability.pronouns_of(ast.parse(source))


def test_an_offence_without_a_reason_and_a_stale_exception_are_refused(assert_excepted):
    assert_excepted({"a": 2}, {"a": "why"}, "law")
    with pytest.raises(AssertionError, match=r"law: b \(1\)"):
        assert_excepted({"a": 2, "b": 1}, {"a": "why"}, "law")
    with pytest.raises(AssertionError, match="not needed: b"):
        assert_excepted({"a": 2}, {"a": "why", "b": "why"}, "law")
    with pytest.raises(AssertionError, match="needs a reason"):
        assert_excepted({"a": 2}, {"a": ""}, "law")
