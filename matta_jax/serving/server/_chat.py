"""Messages of a conversation as one prompt, by a template of Jinja."""

import datetime
from typing import Any, NoReturn

from matta_jax import storage
from matta_jax.errors import UserError, shorten

_ROLES = ("system", "user", "assistant", "developer", "tool")


class ChatTemplate:
    """A template as Hugging Face's tokenizers have them: of `messages`, each of `role` and
    `content`, and `add_generation_prompt`.

    Args:
      file: of the template, the operator's own.

    Raises:
      UserError: Jinja is missing, or the file is, or holds no template.
    """

    def __init__(self, file: str):
        try:
            import jinja2
            import jinja2.sandbox
        except ImportError:
            raise UserError(
                "chat_template needs the package jinja2: pip install 'matta_jax[serve]'"
            ) from None
        try:
            text = storage.read_text(storage.path(file))
        except (OSError, ValueError):
            raise UserError(f"chat_template={file!r} cannot be read; name a text file") from None
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True
        )
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            self._template = environment.from_string(text)
        except jinja2.TemplateError as error:
            raise UserError(f"chat_template={file!r} is no template: {error}; mend it") from None

    def render(self, messages: Any) -> str:
        """The prompt of a conversation. Raises UserError for messages that are none."""
        if not isinstance(messages, list) or not messages:
            raise UserError("messages must be a list of at least one object with role and content")
        turns = [_turn(message) for message in messages]
        try:
            return self._template.render(messages=turns, add_generation_prompt=True)
        except UserError:
            raise
        # A template may fail in any way on messages that it was not written for.
        except Exception as error:
            raise UserError(f"the chat template refuses these messages: {error}") from None


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
