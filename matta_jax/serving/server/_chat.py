"""Messages of a conversation as one prompt, by a template of Jinja."""

import datetime
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from absl import logging

from matta_jax import storage
from matta_jax.errors import UserError, shorten
from matta_jax.tokenizers import Conversation

_ROLES = ("system", "user", "assistant", "developer", "tool")


class ChatTemplate:
    """A template as Hugging Face's tokenizers have them: of `messages`, each of `role` and
    `content`, and `add_generation_prompt`.

    Args:
      text: of the template.
      names: of control tokens, as the template calls them.
      where: it stands, for errors.

    Raises:
      UserError: Jinja is missing, or the text is no template.
    """

    def __init__(self, text: str, names: Mapping[str, str], where: str):
        try:
            import jinja2
            import jinja2.sandbox
        except ImportError:
            raise UserError(
                "chat_template needs the package jinja2: pip install 'matta_jax[serve]'"
            ) from None
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        # Jinja's own writes < and > as HTML has them.
        environment.filters["tojson"] = storage.json_text
        self._names = dict(names)
        try:
            self._template = environment.from_string(text)
        except jinja2.TemplateError as error:
            raise UserError(f"chat_template={where!r} is no template: {error}; mend it") from None

    def render(self, messages: Any, control_names: Collection[str] = ()) -> str:
        """The prompt of a conversation.

        Args:
          messages: of a client.
          control_names: of control tokens, which a client may not write: they would end its message
            and begin one of somebody else's.

        Raises:
          UserError: messages that are none, or hold a control token.
        """
        if not isinstance(messages, list) or not messages:
            raise UserError("messages must be a list of at least one object with role and content")
        turns = [_turn(message) for message in messages]
        for turn in turns:
            for name in control_names:
                if name in turn["content"]:
                    raise UserError(
                        f"a message holds {name!r}, which is a control token of the model; leave "
                        "it out"
                    )
        try:
            return self._template.render(messages=turns, add_generation_prompt=True, **self._names)
        except UserError:
            raise
        # A template may fail in any way on messages that it was not written for.
        except Exception as error:
            raise UserError(f"the chat template refuses these messages: {error}") from None


def chat_template(file: str | None, conversation: Conversation) -> ChatTemplate | None:
    """What makes prompts of conversations.

    Args:
      file: of the operator's own template; None: the model's.
      conversation: what the model's folder says.

    Returns:
      None where there is no template, or the model's own cannot be used, which is logged.

    Raises:
      UserError: Jinja is missing, or the file is, or holds no template.
    """
    if file is not None:
        try:
            text = storage.read_text(storage.path(file))
        except (OSError, ValueError):
            raise UserError(f"chat_template={file!r} cannot be read; name a text file") from None
        return ChatTemplate(text, conversation.names, file)
    if conversation.template is None:
        return None
    try:
        return ChatTemplate(conversation.template, conversation.names, "that of the model")
    except UserError as error:
        logging.warning("there will be no chat: %s", error)
        return None


def _turn(message: Any) -> dict[str, str]:
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise UserError(f"a message's role must be one of {', '.join(_ROLES)}")
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts):
            content = "".join(texts)
    if not isinstance(content, str):
        raise UserError(f"a message's content must be a text, not {shorten(content)}")
    return {"role": message["role"], "content": content}


def _refuse(message: str) -> NoReturn:
    raise UserError(f"the chat template refuses these messages: {message}")
