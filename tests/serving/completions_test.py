"""Text as tokens come: what was said is not taken back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matta_jax.errors import UserError
from matta_jax.serving import Request
from matta_jax.serving._completions import TextStream
from matta_jax.tokenizers import ByteTokenizer


def pieces(text, sizes):
    """The bytes of a text, in pieces of these sizes, again and again."""
    ids = list(text.encode())
    start, i = 0, 0
    while start < len(ids):
        size = sizes[i % len(sizes)]
        yield ids[start : start + size], start + size >= len(ids)
        start, i = start + size, i + 1


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\x00\ufffd"), min_size=1, max_size=30),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.lists(st.text("ab", min_size=1, max_size=3), max_size=2),
)
def test_a_stream_tells_the_text_up_to_the_first_stop_string(text, sizes, stop):
    stream = TextStream(ByteTokenizer(), stop)
    said = ""
    for piece, is_last in pieces(text, sizes):
        end = stream.push(piece, is_last=is_last)
        safe = stream.text[: stream.safe_length]
        assert safe.startswith(said)
        said = safe
        if end is not None:
            assert 1 <= end <= len(piece)
            break
    # Which string ends first counts; of two that end together, the one that begins first.
    ends = [(text.find(each) + len(each), text.find(each)) for each in stop if each in text]
    expected = text[: min(start for end, start in ends if end == min(ends)[0])] if ends else text
    assert stream.text == expected
    assert stream.has_stopped == bool(ends)


def test_half_a_character_waits_for_its_other_half():
    stream = TextStream(ByteTokenizer())
    first, *others = "é".encode()
    stream.push([first])
    assert stream.text == ""
    stream.push(others)
    assert stream.text == "é"
    stream.push([first], is_last=True)
    assert stream.text == "é\ufffd"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ids": ()}, "a prompt of no tokens"),
        ({"num_tokens": 0}, "num_tokens=0 must be at least 1"),
        ({"num_tokens": 2**25}, "num_tokens=33554432 must be at most"),
        ({"stop": ("a", "")}, "stop has an empty string"),
    ],
)
def test_bad_requests_end_in_one_line(fields, words):
    with pytest.raises(UserError, match=words):
        Request(**({"ids": (1,), "spec": "ta", "num_tokens": 4} | fields))
