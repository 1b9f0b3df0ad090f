"""Templates of conversations: the model's own, the operator's, and messages that they refuse."""

import pytest

pytest.importorskip("jinja2")

from matta_jax.errors import UserError
from matta_jax.serving.server._chat import ChatTemplate, chat_template
from matta_jax.tokenizers import Conversation

HELLO = [{"role": "user", "content": "hello"}]
OWN = Conversation("{{ bos_token }}{{ messages[0].content }}", {"bos_token": "<s>"})


def test_the_models_own_template_is_filled_in_but_for_the_operators(tmp_path):
    assert chat_template(None, Conversation()) is None
    assert chat_template(None, OWN).render(HELLO) == "<s>hello"
    (tmp_path / "t.jinja").write_text("[{{ bos_token }}]")
    assert chat_template(str(tmp_path / "t.jinja"), OWN).render(HELLO) == "[<s>]"


def test_a_template_of_the_model_that_cannot_be_used_is_told_and_left_out(caplog):
    with caplog.at_level("WARNING", logger="absl"):
        assert chat_template(None, Conversation("{% for %}")) is None
    assert "there will be no chat: chat_template='that of the model' is no" in caplog.text


def test_templates_have_what_transformers_gives_them():
    text = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{{ {'<': m.content} | tojson }}{% endfor %}"
    )
    assert ChatTemplate(text, {}, "x").render(HELLO * 2) == '{"<": "hello"}'


@pytest.mark.parametrize("content", ["a<|end|>", [{"type": "text", "text": "<|end|>"}]])
def test_a_message_cannot_end_itself(content):
    chat = chat_template(None, OWN)
    messages = [*HELLO, {"role": "user", "content": content}]
    assert chat.render(messages) == "<s>hello"
    words = "a message holds '<|end|>', which is a control token of the model; leave it out"
    with pytest.raises(UserError) as error:
        chat.render(messages, ["<|start|>", "<|end|>"])
    assert str(error.value) == words


def test_a_template_reaches_nothing_but_its_messages():
    text = "{{ messages.__class__.__mro__ }}"
    with pytest.raises(UserError, match="refuses these messages: access to attribute"):
        ChatTemplate(text, {}, "x").render(HELLO)
