"""Mixtures in a config: what a component says, and what is refused."""

import pytest

from matta_jax.config import Config, DataConfig, from_dict, same_until
from matta_jax.errors import UserError


def mixture(**components):
    return DataConfig(source="mixture", mixture=components)


def test_a_component_is_a_source_with_its_weights_and_epochs():
    data = mixture(
        books="text:a b/*; weight=2;weight@50=0.5 ;epochs=4",
        code="stdlib",
        late="stdlib;weight=0;weight@9=1",
    )
    books, code, late = data.components
    assert (books.source, books.epochs) == ("text:a b/*", 4.0)
    assert [books.weight_at(step) for step in (0, 49, 50, 99)] == [2.0, 2.0, 0.5, 0.5]
    assert (code.source, code.epochs, code.weight_at(10**6)) == ("stdlib", None, 1.0)
    assert [late.weight_at(step) for step in (0, 8, 9)] == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("components", "words"),
    [
        ({"a": "stdlib;wieght=2"}, r"data.mixture.a='stdlib;wieght=2': 'wieght=2' must be weight="),
        ({"a": "stdlib;weight=-1"}, r"'weight=-1' must be a number from 0 to 1e9"),
        ({"a": "stdlib;weight=nan"}, r"must be a number from 0"),
        ({"a": "stdlib;epochs=0"}, "epochs=0 would read nothing"),
        ({"a": "mixture"}, "must begin with a source"),
        ({"a": ";weight=1"}, "must begin with a source"),
        ({"a b": "stdlib"}, "must be a word of at most 30"),
        ({"a": "stdlib;weight=0"}, "all weights are 0 from step 0 on"),
        ({"a": "stdlib;weight@7=0"}, "all weights are 0 from step 7 on"),
        ({}, "data.source='mixture' and data.mixture of 0 sources"),
    ],
)
def test_what_is_no_mixture_is_one_line(components, words):
    with pytest.raises(UserError, match=words) as error:
        mixture(**components)
    assert "\n" not in str(error.value)


def test_a_mixture_without_its_source_is_refused():
    with pytest.raises(UserError, match="data.source='stdlib' and data.mixture of 1 sources"):
        DataConfig(mixture={"a": "stdlib"})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data": {"stream": True, "eval_source": "stdlib"}}, "data.stream=True"),
        ({"data": {"max_windows": 5}}, "data.max_windows=5"),
        ({"teacher": {"labels": "l", "student_weight": 1.0}}, "teacher.labels='l'"),
        ({"model": {"name": "vit"}}, "model.name='vit'"),
    ],
)
def test_what_a_mixture_is_not_for(fields, words):
    data = {"source": "mixture", "mixture": {"a": "stdlib"}} | fields.get("data", {})
    with pytest.raises(UserError, match=f"data.mixture is not for {words}"):
        from_dict({**fields, "data": data})
    assert Config().data.components == ()


def test_what_was_read_must_stay_and_what_comes_may_change():
    before = mixture(a="stdlib;weight=2;epochs=1", b="text:x").components
    for text, step, is_same in (
        ("stdlib;weight=2", 100, True),
        ("stdlib;weight=2;weight@100=5;epochs=9", 100, True),
        ("stdlib;weight=2;weight@99=5", 100, False),
        ("stdlib;weight=2;weight@99=5;weight@150=2", 50, True),
        ("stdlib;weight=3", 1, False),
        ("stdlib;weight=3", 0, True),
        ("text:moved;weight=2", 100, True),
    ):
        assert same_until(before, mixture(a=text, b="text:x").components, step) == is_same, text
    assert not same_until(before, mixture(b="text:x", a="stdlib;weight=2").components, 1)
    assert not same_until(before, before[:1], 1)
