"""What a model's folder says of conversations, and ids of a filled-in template."""

import json

import pytest

from matta_jax import tokenizers
from matta_jax.errors import UserError

pytest.importorskip("tokenizers")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
NAMES = ["<|im_start|>", "<|im_end|>", "<turn>"]


@pytest.fixture
def folder(tokenizer_file):
    """Of a tokenizer with control tokens, of which `<turn>` takes the spaces after it."""
    import tokenizers as library

    spec = tokenizer_file("gpt-2")
    file = spec.removeprefix("hf:")
    made = library.Tokenizer.from_file(file)
    added = [library.AddedToken(name, special=True, rstrip=name == "<turn>") for name in NAMES]
    made.add_special_tokens(added)
    made.save(file)
    return tokenizers.make_tokenizer(spec), file.removesuffix("/tokenizer.json")


def write(folder, name, value):
    with open(f"{folder}/{name}", "w", encoding="utf-8") as file:
        file.write(value if isinstance(value, str) else json.dumps(value))


def test_what_stands_beside_a_tokenizer(folder):
    tokenizer, where = folder
    assert tokenizers.conversation_of(tokenizer) == tokenizers.Conversation()
    ends = tokenizer.control_ids["<|im_end|>"]
    token = {"content": "<s>", "special": True}
    config = {"bos_token": token, "eos_token": "<|im_end|>", "pad_token": None, "x": "y"}
    write(where, "tokenizer_config.json", config | {"chat_template": "old"})
    names = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
    assert tokenizers.conversation_of(tokenizer) == tokenizers.Conversation("old", names, (ends,))

    several = [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]
    write(where, "tokenizer_config.json", config | {"chat_template": several})
    assert tokenizers.conversation_of(tokenizer).template == "d"
    write(where, "chat_template.jinja", TEMPLATE)
    assert tokenizers.conversation_of(tokenizer).template == TEMPLATE


def test_ids_that_end_a_text_are_those_that_are_there(folder):
    tokenizer, where = folder
    turn = tokenizer.control_ids["<turn>"]
    for value, ends in (
        (turn, (turn,)),
        ([turn, tokenizer.eos_id, turn, 5], (turn, 5)),
        ([tokenizer.vocab_size, -1, True, "x", None], ()),
    ):
        write(where, "generation_config.json", {"eos_token_id": value})
        assert tokenizers.conversation_of(tokenizer).end_ids == ends


def test_damaged_files_are_named(folder):
    tokenizer, where = folder
    write(where, "tokenizer_config.json", "[1")
    with pytest.raises(UserError, match=r"tokenizer_config.json cannot be read .*; mend or remove"):
        tokenizers.conversation_of(tokenizer)
    write(where, "tokenizer_config.json", "[1]")
    with pytest.raises(UserError, match="tokenizer_config.json is no JSON object; mend or remove"):
        tokenizers.conversation_of(tokenizer)


def test_others_have_no_conversations(tokenizer_file):
    for tokenizer in (
        tokenizers.ByteTokenizer(),
        tokenizers.make_tokenizer(tokenizer_file("gpt2")),
    ):
        assert tokenizers.conversation_of(tokenizer) == tokenizers.Conversation()
        assert tokenizer.encode_template("a <b>").tolist() == tokenizer.encode("a <b>").tolist()


def test_names_of_control_tokens_stand_for_them_in_a_template_alone(folder):
    tokenizer, _ = folder
    start, end, turn = (tokenizer.control_ids[name] for name in NAMES)
    text = "<|im_start|>user\nhello<|im_end|>\n<turn>  you"
    parts = [[start], "user\nhello", [end], "\n", [turn], "you"]
    ids = [tokenizer.encode(part).tolist() if isinstance(part, str) else part for part in parts]
    assert tokenizer.encode_template(text).tolist() == [i for part in ids for i in part]
    of_text = tokenizer.encode(text)
    assert not {start, end, turn} & {*of_text.tolist()} and tokenizer.decode(of_text) == text


@pytest.mark.slow
def test_a_conversation_has_the_ids_that_transformers_gives_it(folder):
    transformers = pytest.importorskip("transformers")
    jinja2 = pytest.importorskip("jinja2")
    tokenizer, where = folder
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=f"{where}/tokenizer.json",
        bos_token="<s>", eos_token="<|im_end|>", chat_template=TEMPLATE,
    )  # fmt: skip
    messages = [{"role": "user", "content": " Hello, <b>\n"}, {"role": "tool", "content": "x"}]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    text = jinja2.Template(TEMPLATE).render(messages=messages, bos_token="<s>")
    assert tokenizer.encode_template(text).tolist() == expected
