"""The grammar of sub-models."""

import re

import hypothesis
import hypothesis.strategies as st
import pytest

from matta_jax import nesting
from matta_jax.errors import UserError

DEPTH_12 = {"d_model": 128, "heads": 8}


@hypothesis.given(st.data())
def test_specs_round_trip(cases, data):
    nest, sub_model = data.draw(cases())
    assert nesting.parse_spec(nesting.format_spec(sub_model, nest), nest) == sub_model


@hypothesis.given(st.data())
def test_specs_of_named_members_round_trip(cases, data):
    nest, member, sub_model = data.draw(cases(2))
    nest = nesting.Nest(nest.members | {"small": member}, nest.allowed, nest.spread)
    assert nesting.parse_spec("small", nest) == member
    for part in (member, sub_model):
        assert nesting.parse_spec(nesting.format_spec(part, nest), nest) == part


CASES = [
    ("student", lambda nest: nest.student),
    ("ta", lambda nest: nest.ta),
    (
        "layers=12;d_ff=512",
        lambda nest: nesting.SubModel(tuple(range(12)), DEPTH_12, {"d_ff": (512,) * 12}),
    ),
    ("d_ff=1024*6,256*12,1024*6", lambda nest: nest.mix([1024] * 6 + [256] * 12 + [1024] * 6)),
    ("d_ff=wide-narrow-wide:8", lambda nest: nest.mix([1024] * 4 + [256] * 16 + [1024] * 4)),
    ("d_ff=narrow-wide-narrow:8", lambda nest: nest.mix([256] * 8 + [1024] * 8 + [256] * 8)),
    ("layers=0,2,4", lambda nest: nest.ta.with_layers((0, 2, 4))),
    ("layers=only:7", lambda nest: nest.ta.with_layers((7,))),
    (" d_model = 64 ", lambda nest: nest.ta.resized(d_model=64)),
    (
        "num_heads=4;layers=1",
        lambda nest: nesting.SubModel((0,), {"d_model": 128, "heads": 4, "d_ff": 1024}),
    ),
    ("num_heads=4*12,8*12", lambda nest: nest.mix([4] * 12 + [8] * 12, axis="heads")),
    ("layers=2;num_heads=8,4", lambda nest: nest.ta.with_layers((0, 1)).resized(heads=(8, 4))),
    (
        "num_heads=wide-narrow-wide:2;d_ff=512",
        lambda nest: nest.ta.resized(heads=(8, *(4,) * 22, 8), d_ff=512),
    ),
]


@pytest.mark.parametrize(("spec", "expected"), CASES, ids=[spec for spec, _ in CASES])
def test_specs(medium, spec, expected):
    assert nesting.parse_spec(spec, medium) == expected(medium)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("d_ff=300", ["d_ff=300", "256, 512, 1024"]),
        ("d_model=96", ["d_model=96", "64, 128"]),
        ("num_heads=5", ["num_heads=5", "4, 8"]),
        ("layers=25", ["layers=25", "1 to 24"]),
        ("layers=0", ["layers=0"]),
        ("layers=3,24", ["layers=24", "0 to 23"]),
        ("layers=3,2", ["layers=3,2", "rise"]),
        ("d_ff=256*3", ["3 widths", "24 layers"]),
        ("d_ff=wide-narow-wide:3", ["wide-narow-wide", "did you mean 'wide-narrow-wide'"]),
        ("d_ff=wide-narrow-wide:30", ["30 wide layers"]),
        ("d_modl=64", ["d_modl", "did you mean 'd_model'"]),
        ("d_ff=x", ["'x'", "whole number"]),
        ("d_ff=256;d_ff=512", ["d_ff is named twice"]),
        ("d_ff=256*0,512*24", ["256*0", "1 to the 24 layers"]),
        ("d_ff=256*1000000", ["256*1000000", "1 to the 24 layers"]),
        ("d_ff=256*1000000000000", ["'1000000000000'", "nine digits"]),
        ("d_ff=" + "9" * 5000, ["nine digits"]),
        ("layers=7,", ["layers=''", "whole number"]),
        ("layers=7,,8", ["layers=''", "whole number"]),
        ("layers=\u0663\u0662", ["whole number"]),
        ("d_ff=\u00b2", ["whole number"]),
        ("layers=only:24", ["layers=24", "0 to 23"]),
        ("layers=only:", ["layers=''", "whole number"]),
        ("studnt", ["did you mean 'student'"]),
        ("", ["student, ta or AXIS=VALUE"]),
        ("num_heads=4*3", ["num_heads names 3 sizes", "24 layers"]),
        ("num_heads=4*23,5", ["num_heads=5", "4, 8"]),
        ("d_model=64*12,128*12", ["d_model='64*12,128*12'", "whole number"]),
        ("heads=4", ["'heads=4'", "num_heads"]),
        ("layers=" + ",".join(map(str, range(9999))), ["layers=24", "0 to 23"]),
        ("layers=" + "1," * 9999 + "1", ["layers=1,1 must rise"]),
        ("d_ff=" + "256," * 9999 + "1", ["names 10000 widths", "24 layers"]),
        ("d_ff=" + "256*24," * 9999 + "9", ["names 239977 widths"]),
        ("a\nb" * 9999, ["'a\\nba", "is not student, ta or AXIS=VALUE"]),
        ("d_ff=" + "a\n" * 9999 + ":3", ["pattern 'a\\n"]),
        ("d_ff=2\n5*0", ["d_ff='2\\n5'", "whole number"]),
        (10**5000, ["sub_model a number of thousands of digits must be a string", "int"]),
        (None, ["sub_model None must be a string"]),
        (["student"], ["sub_model ['student'] must be a string"]),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)
def test_bad_specs_name_the_axis_the_value_and_what_is_allowed(medium, spec, words):
    with pytest.raises(UserError) as error:
        nesting.parse_spec(spec, medium)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    for word in words:
        assert word in str(error.value)


def test_sizes_that_a_run_adds_need_not_be_the_nests(medium):
    with pytest.raises(UserError, match="d_ff=300"):
        nesting.parse_spec("d_ff=300", medium)
    assert nesting.parse_spec("d_ff=300", medium, is_new=True) == medium.ta.resized(d_ff=300)


def test_slugs_are_names_of_folders():
    assert nesting.slug("layers=0,2;d_ff=16*3,8") == "layers_0_2_d_ff_16x3_8"
    assert nesting.slug("layers=2") != nesting.slug("layers=only:2")
    assert nesting.slug("d_ff=wide-narrow-wide:8") == "d_ff_wide-narrow-wide_8"
    assert nesting.slug(" layers = 2; d_ff=16 ") == "layers_2_d_ff_16"
    assert nesting.slug("middle") == "middle"
    # Of another version too: what was extracted is found again.
    assert nesting.slug("layers_2") == "layers_2-be7a8355a038af46"


# Names and specs that are alike but for the signs between their words.
WORDS = st.lists(
    st.sampled_from(["layers", "d_ff", "only", "2", "16", "3", "Wide", "wide", "ö", "a", "x"]),
    min_size=1,
    max_size=8,
)
SIGNS = st.lists(st.sampled_from("_=;,:*x .-/"), min_size=8, max_size=8)
TEXTS = st.one_of(
    st.text(max_size=4),
    st.builds(
        lambda words, signs: "".join(map("".join, zip(words, signs, strict=False))), WORDS, SIGNS
    ),
)


@hypothesis.given(st.data())
def test_other_models_and_other_names_have_other_folders(cases, data):
    nest, member, sub_model = data.draw(cases(2))
    names = data.draw(st.lists(TEXTS, max_size=4, unique_by=lambda text: "".join(text.split())))
    specs = {nesting.format_spec(part, nest) for part in (member, sub_model)}
    # What a member would have to be called to be taken for one of them.
    specs |= {re.sub(r"\W", "_", spec) for spec in specs} | {spec.upper() for spec in specs}
    slugs = {spec: nesting.slug(spec) for spec in specs | set(names)}
    assert len({slug.lower() for slug in slugs.values()}) == len(slugs)
    for slug in slugs.values():
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", slug)


def test_a_long_spec_has_a_short_folder_name():
    long_specs = [f"d_ff={','.join(['16', '32'] * 60 + [last])}" for last in ("16", "32")]
    slugs = [nesting.slug(spec) for spec in long_specs]
    assert [len(slug) for slug in slugs] == [200, 200]
    assert slugs[0] != slugs[1]


def test_sizes_and_members_of_large_nests_are_listed_short():
    widths = tuple(range(8, 1000, 8))
    nest = nesting.expand(num_layers=2, d_model=8, num_heads=2, d_ff=8, ta_d_ff=992, widths=widths)
    with pytest.raises(UserError, match="allowed: 8, 16, .*, 96 and 112 more$"):
        nesting.parse_spec("d_ff=9", nest)
    members = nest.members | {f"m{i}": nest.ta for i in range(99)}
    nest = nesting.Nest(members, nest.allowed, nest.spread)
    with pytest.raises(UserError, match="is not student, ta, m0, .* and 89 more or AXIS=VALUE"):
        nesting.parse_spec("x", nest)


def test_a_family_rises_from_width_to_width():
    nest = nesting.expand(
        num_layers=3, d_model=8, num_heads=2, d_ff=8, ta_d_ff=32, widths=(8, 16, 32)
    )
    specs = nesting.graded_specs(nest)
    assert specs == ["student", "ta", "d_ff=16", "d_ff=16*2,8", "d_ff=32*2,16"]
    # A layer by itself has no half.
    lone = nesting.expand(num_layers=1, d_model=8, num_heads=2, d_ff=8, ta_d_ff=16)
    assert nesting.graded_specs(lone) == ["student", "ta"]
