"""Prompts as a model reads them."""

import numpy as np

from matta_jax import serving, tokenizers
from matta_jax.serving import _prompts


def test_ids_of_a_padded_vocabulary_and_of_holes_have_no_token():
    tokenizer = tokenizers.ByteTokenizer()
    assert serving.ids_with_token(tokenizer, 256) is None
    assert np.flatnonzero(~serving.ids_with_token(tokenizer, 258)).tolist() == [256, 257]


class Letters(tokenizers.ByteTokenizer):
    """Has no token for what is not ASCII."""

    def _ids_of(self, text):
        return np.frombuffer(text.encode("ascii", "ignore"), np.uint8)


def test_a_prompt_that_loses_characters_is_told_as_the_model_reads_it(caplog):
    with caplog.at_level("WARNING", logger="absl"):
        assert _prompts.prompt_ids(Letters(), "cafe").tolist() == list(b"cafe")
        assert not caplog.records
        assert _prompts.prompt_ids(Letters(), "caf東").tolist() == list(b"caf")
    [record] = caplog.records
    assert record.message.startswith("prompt='caf東' does not survive")
    assert record.message.endswith("the model reads 'caf'")


class Turns(tokenizers.ByteTokenizer):
    """Has a control token, which it finds in templates."""

    control_ids = {"<t>": 300}  # noqa: RUF012

    def encode_template(self, text):
        head, *rest = text.split("<t>")
        ids = [*head.encode()]
        for part in rest:
            ids += [300, *part.encode()]
        return np.array(ids)


def test_a_template_begins_as_it_says_or_as_a_document_does():
    tokenizer = Turns()
    assert _prompts.template_ids(tokenizer, "<t>a<t>") == (300, *b"a", 300)
    assert _prompts.template_ids(tokenizer, "a<t>") == (tokenizer.start_id, *b"a", 300)
    assert _prompts.template_ids(tokenizer, "") == (tokenizer.start_id,)


def test_a_template_without_control_tokens_is_a_prompt_like_any_other(caplog):
    with caplog.at_level("WARNING", logger="absl"):
        ids = _prompts.template_ids(Letters(), "caf東")
    assert ids == (Letters().start_id, *b"caf") and "does not survive" in caplog.text


def test_a_prompt_begins_as_a_document_does():
    tokenizer = tokenizers.ByteTokenizer()
    assert _prompts.started_ids(tokenizer, "ab") == (tokenizer.start_id, *b"ab")
    assert _prompts.started_ids(tokenizer, "") == (tokenizer.start_id,)
