"""What a user may write, at random: it is taken, or refused in one short line.

Manifests are in `tests/packages/manifest_test.py`.
"""

import contextlib
import dataclasses
import json
import math
import types

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from matta_jax import config as c
from matta_jax import nesting, storage, tokenizers
from matta_jax.errors import UserError

ODD_TEXT = [
    "",
    " ",
    "a\nb",
    "\0",
    "\x1b[2J",
    "\u2028",
    "\udcff",
    "\u0663\u0662",
    "\u202e",
    "a" * 9999,
]
ODD_NUMBERS = [0, -1, 1, 2, 2**31, 2**32, 2**63, 2**64, 10**12]
ODD_FLOATS = [
    0.0,
    -0.0,
    5e-324,
    1e-300,
    1e-40,
    1e-9,
    1 - 1e-16,
    1e300,
    math.inf,
    -math.inf,
    math.nan,
]

TEXT = st.sampled_from(ODD_TEXT) | st.text(max_size=20)
# Mapped: hypothesis writes what it samples from, and Python no number of so many digits.
HUGE = st.sampled_from([1, -1]).map(lambda sign: sign * 10**5000)
NUMBER = st.sampled_from(ODD_NUMBERS) | HUGE | st.integers()
FLOAT = st.sampled_from(ODD_FLOATS) | st.floats()
SCALAR = st.none() | st.booleans() | NUMBER | FLOAT | TEXT | st.binary(max_size=3)
ANY = st.recursive(
    SCALAR,
    lambda part: (
        st.lists(part, max_size=4)
        | st.lists(part, max_size=4).map(tuple)
        | st.dictionaries(SCALAR, part, max_size=3)
    ),
    max_leaves=6,
)


def mostly(likely, other):
    """Values of the first strategy, and one in eight of the other."""
    return st.integers(0, 7).flatmap(lambda number: likely if number else other)


@contextlib.contextmanager
def taken_or_one_line():
    """Passes over a UserError of one short line; any other error is a fault."""
    try:
        yield
    except UserError as error:
        line = str(error)
        assert line.splitlines() == [line] and len(line) < 2000


# The grammar of sub-models.

NEST = nesting.expand(
    num_layers=2,
    d_model=8,
    num_heads=2,
    d_ff=16,
    ta_num_layers=4,
    ta_d_model=12,
    ta_num_heads=3,
    ta_d_ff=64,
    widths=(16, 32, 64),
    spread=True,
)
WORDS = st.sampled_from(["student", "ta", "small", "layers", "d_model", "heads", "only"])
SIZES = st.sampled_from(["1", "2", "3", "4", "8", "12", "16", "32", "64"])
ODD_SIZES = st.sampled_from(["0", "-1", "²", "\u0663", "9" * 99, "1e3", ""])
SIGNS = st.sampled_from(["=", ";", ",", "*", ":", " ", "\n", "only:", "wide-narrow-wide"])
NOISE = st.lists(WORDS | SIZES | ODD_SIZES | SIGNS | TEXT, max_size=9).map("".join)

# Parts of which each is of the grammar, and which fit each other now and then.
COUNTS = mostly(SIZES, ODD_SIZES)
RUNS = st.lists(COUNTS | st.tuples(COUNTS, COUNTS).map("*".join), min_size=1, max_size=4)
PATTERNS = st.sampled_from(["wide-narrow-wide:", "narrow-wide-narrow:", "only:", "wide:"])
VALUES = COUNTS | RUNS.map(",".join) | st.tuples(PATTERNS, COUNTS).map("".join)
AXES = st.sampled_from(["layers=", "d_model=", "num_heads=", "d_ff=", "d_ff = "])
PARTS = st.lists(st.tuples(AXES, VALUES).map("".join), min_size=1, max_size=3).map(";".join)
SPECS = mostly(PARTS, NOISE | st.sampled_from(["student", "ta"]))


@given(mostly(SPECS, ANY), st.booleans())
def test_a_spec_is_parsed_or_refused_in_one_line(spec, is_new):
    with taken_or_one_line():
        sub_model = nesting.parse_spec(spec, NEST, is_new=is_new)
        if not is_new:
            text = nesting.format_spec(sub_model, NEST)
            assert nesting.parse_spec(text, NEST) == sub_model
            assert storage.path(nesting.slug(text)).name == nesting.slug(text)


# Values of fields.

FIELDS = {
    f"{section}.{declared.name}": declared
    for section, cls in c.SECTIONS.items()
    for part in ([cls, c.ScorerConfig] if section == "model" else [cls])
    for declared in dataclasses.fields(part)
}
NAMES = st.sampled_from(["small", "a", "b"]) | TEXT
OF_KIND = {
    "int": NUMBER,
    "float": FLOAT,
    "bool": st.booleans(),
    "str": TEXT,
    "tuple": st.lists(NUMBER, max_size=4),
    "Mapping[str, str]": st.dictionaries(NAMES, TEXT, max_size=3),
    "Mapping[str, float]": st.dictionaries(NAMES, FLOAT, max_size=3),
}


def kind_of(declared):
    """The type of a field, as `OF_KIND` names it."""
    is_class = isinstance(declared.type, type) and not isinstance(declared.type, types.GenericAlias)
    text = declared.type.__name__ if is_class else str(declared.type)
    return next(kind for kind in reversed(OF_KIND) if kind in text)


def fitting_values(declared):
    """Values in the range of a field."""
    rule, kind = declared.metadata, kind_of(declared)
    if rule["choices"]:
        return st.sampled_from(rule["choices"])
    if kind == "str":
        return NAMES
    if kind == "Mapping[str, str]":
        return st.dictionaries(NAMES, SPECS, max_size=3)
    if "float" in kind:
        numbers = st.floats(rule["smallest"] or rule["minimum"], rule["maximum"])
        return numbers if kind == "float" else st.dictionaries(NAMES, numbers, max_size=3)
    if kind == "bool":
        return OF_KIND[kind]
    numbers = st.integers(rule["minimum"], min(rule["maximum"], 64))
    return numbers if kind == "int" else st.lists(numbers, max_size=4)


def values_of(declared):
    """Values of a field: mostly such as it takes, some of its type, and a few of any."""
    return mostly(mostly(fitting_values(declared), OF_KIND[kind_of(declared)]), ANY)


@st.composite
def config_values(draw):
    """Sections of a few fields, some of a family's own."""
    names = draw(st.lists(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=5, unique=True))
    sections = {}
    for name in names:
        section, _, field = name.partition(".")
        sections.setdefault(section, {})[field] = draw(values_of(FIELDS[name]))
    if draw(st.booleans()):
        sections.setdefault("model", {}).setdefault("name", "scorer")
    return sections


@given(mostly(config_values(), ANY | st.dictionaries(st.sampled_from([*c.SECTIONS]), ANY)))
def test_values_of_a_config_are_taken_or_refused_in_one_line(values):
    with taken_or_one_line():
        config = c.from_dict(values)
        stored = storage.parse_json(storage.json_text(c.to_dict(config)))
        assert c.from_dict(stored) == config and not c.differences(stored, c.to_dict(config))
        nesting.nest_of(config)


@pytest.mark.parametrize("name", sorted(FIELDS))
@settings(max_examples=3)
@given(st.data())
def test_each_field_takes_a_value_or_refuses_it_in_one_line(name, data):
    with taken_or_one_line():
        c.override(c.Config(), {name: data.draw(values_of(FIELDS[name]))})


# Files of tokenizers.

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([0, -1, 1, 300, 2**24 - 1, 2**24, 2**32, 10**30, 0.5])
    | st.sampled_from(["", "a", "<|endoftext|>", "BPE", "th", "Ġ", "東", "a\nb"]),
    lambda part: (
        st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=3), part, max_size=3)
    ),
    max_leaves=5,
)

# Parts of the library's documents, damaged ones among them.
PIECES = [
    {"type": "Lowercase"},
    {"type": "Replace", "pattern": {"Regex": "("}, "content": "x"},
    {"type": "Replace", "pattern": {"Regex": "(?=.)|^"}, "content": ""},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False},
    {"type": "Split", "pattern": {"Regex": "a*"}, "behavior": "Removed", "invert": True},
    {"type": "Sequence", "normalizers": [], "pretokenizers": [], "decoders": [], "processors": []},
    {"type": "BertProcessing", "sep": ["x", 2**31], "cls": ["y", 0]},
    {"type": "WordPiece", "unk_token": "x", "vocab": {"</s>": 0}, "prefix": "", "cleanup": True},
    {"type": "Unigram", "unk_id": 9, "vocab": [["</s>", -1e30], ["", 0.0]], "byte_fallback": True},
    {"type": "BPE", "vocab": {"</s>": 7}, "merges": [["a", "b"]], "unk_token": "none"},
    {"type": "WordLevel", "vocab": {"</s>": 2**32 - 1}, "unk_token": "</s>"},
    {"type": "ByteFallback"},
    {"type": "Strip", "content": "", "start": 2**40, "stop": 1},
]


def like(value):
    """Values that may stand in place of one: mostly of its type."""
    if isinstance(value, dict):
        return st.sampled_from([*PIECES, {}])
    if isinstance(value, list):
        return st.sampled_from([value[:1], value[1:], value[::-1], value * 2, [value], []])
    if isinstance(value, str):
        return TEXT | st.sampled_from(["</s>", "th", "Ġthe", value * 2, value[1:]])
    return st.sampled_from([None, True, False, 0, -1, 1, 300, 2**24, 2**32, -0.5, *PIECES])


def places_of(value, place=()):
    """Where the values of a document are; of a long list or object, where the first ones are."""
    yield place
    parts = ()
    if isinstance(value, dict):
        parts = value.items()
    if isinstance(value, list):
        parts = enumerate(value)
    for name, part in list(parts)[:6]:
        yield from places_of(part, (*place, name))


def value_at(document, place):
    """The value at a place of a document."""
    for name in place:
        document = document[name]
    return document


def mutated(document, place, value):
    """A copy of a document with another value at a place; `...` leaves it out."""
    if not place:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    if len(place) == 1 and value is ...:
        del copy[place[0]]
    else:
        copy[place[0]] = mutated(copy[place[0]], place[1:], value)
    return copy


def vocabulary():
    from tokenizers import pre_tokenizers

    letters = pre_tokenizers.ByteLevel.alphabet()
    order = sorted(letters, key=lambda letter: (ord(letter) > 255, ord(letter)))
    ids = {letter: i for i, letter in enumerate(order)} | {"th": 256, "the": 257}
    return ids | {"<|endoftext|>": 258}


@pytest.fixture(scope="module")
def hf_rules():
    """The documents of tokenizers of Hugging Face's library."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    ids = vocabulary()
    bpe = Tokenizer(models.BPE(ids, [("t", "h"), ("th", "e")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(["<|endoftext|>"])
    words = Tokenizer(models.WordLevel({"[SEP]": 0, "[UNK]": 1, "the": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pieces = Tokenizer(models.Unigram([("</s>", 0.0), ("▁the", -1.0), ("<unk>", 0.0)], unk_id=2))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    return [json.loads(tokenizer.to_str()) for tokenizer in (bpe, words, pieces)]


def use(spec):
    """Does with a tokenizer what runs and evaluations do."""
    with taken_or_one_line():
        tokenizer = tokenizers.make_tokenizer(spec)
        for text in ("the cat, <|endoftext|>\n the 東京 \0", ""):
            ids = tokenizer.encode(text)
            assert tokenizer.eos_id not in ids and (ids < tokenizer.vocab_size).all()
            assert tokenizer.count_bytes(text, ids) <= len(text.encode())
        tokenizer.decode(np.arange(-1, 300))
        tokenizers.fitting_tokenizer(spec, 300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizers")


@given(data=st.data())
def test_a_tokenizer_json_is_used_or_refused_in_one_line(hf_rules, folder, data):
    rules = data.draw(st.sampled_from(hf_rules))
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(sorted(places_of(rules), key=repr)))
        other = JSON | st.just(...) if place else JSON
        rules = mutated(rules, place, data.draw(mostly(like(value_at(rules, place)), other)))
    text = json.dumps(rules)
    if data.draw(st.integers(0, 9)) == 0:
        text = text[: data.draw(st.integers(0, len(text)))]
    (folder / "tok.json").write_text(text)
    use(f"hf:{folder}/tok.json")


@given(data=st.data())
def test_files_of_gpt2_are_used_or_refused_in_one_line(folder, data):
    ids, merges = vocabulary(), "#version: 0.2\nt h\nth e\n"
    if data.draw(st.booleans()):
        place = data.draw(st.sampled_from([(), ("a",), ("th",), ("<|endoftext|>",), ("!",)]))
        ids = mutated(ids, place, data.draw(JSON | st.just(...) if place else JSON))
    if data.draw(st.booleans()):
        line = data.draw(TEXT | st.sampled_from(["t h", "t h e", "the t", "x  y", "\x85"]))
        merges = merges.replace(data.draw(st.sampled_from(["#version: 0.2", "t h", "th e"])), line)
    (folder / "encoder.json").write_text(json.dumps(ids))
    (folder / "vocab.bpe").write_bytes(merges.encode(errors="surrogatepass"))
    use(f"gpt2:{folder}")
