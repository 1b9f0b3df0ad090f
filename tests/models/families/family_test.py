"""The table of families, and what one says of its models' cost."""

import pytest

from matta_jax import models, nesting

NEST = nesting.expand(num_layers=3, d_model=16, num_heads=2, d_ff=16, ta_num_heads=3)


def test_families_are_known_by_name():
    assert {"gpt", "scorer"} <= set(models.families())
    assert models.family_of("gpt") is models.families()["gpt"]
    with pytest.raises(ValueError, match="family 'gtp' is in no table; did you mean 'gpt'"):
        models.family_of("gtp")


def test_a_family_may_register_again_but_no_other_by_its_name():
    gpt = models.family_of("gpt")
    assert models.register(type(gpt)()) is gpt
    namesake = type("Namesake", (type(gpt),), {})
    with pytest.raises(ValueError, match="family 'gpt' is GPT2 already"):
        models.register(namesake())
    assert models.family_of("gpt") is gpt


def test_modules_are_entries_layers_or_exits():
    assert models.family_of("gpt").entries == ["embed"]
    assert models.family_of("scorer").entries == ["embed", "dense", "categories"]


def test_attention_is_counted_by_the_heads_of_each_layer():
    fixed = {"head_dim": 8}
    by_layer = NEST.ta.resized(heads=(2, 3, 2))
    gpt, scorer = models.family_of("gpt"), models.family_of("scorer")
    assert gpt.attention_flops(by_layer, fixed, 10) == 2 * (2 + 3 + 2) * 8 * 10
    assert scorer.attention_flops(by_layer, fixed, 10) == 4 * (2 + 3 + 2) * 8 * 10
    grouped = fixed | {"queries": 2}
    assert gpt.attention_flops(NEST.ta, grouped, 10) == 2 * 9 * 2 * 8 * 10
