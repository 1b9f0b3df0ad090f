"""What a model's folder says of conversations: beside its `tokenizer.json`, as Hugging Face's
libraries write it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.storage import is_whole
from matta_jax.tokenizers._base import Tokenizer
from matta_jax.tokenizers._bundle import companions

_TEMPLATE, _CONFIG = "chat_template.jinja", "tokenizer_config.json"
_GENERATION = "generation_config.json"
_FIELD = "chat_template"


@dataclasses.dataclass(frozen=True)
class Conversation:
    """How a model was taught to converse.

    Attributes:
      template: of Jinja, which makes a prompt of messages; None: there is none.
      names: of control tokens, as the template calls them: `bos_token` and so on.
      end_ids: that end what the model writes, beside the separator of documents.
    """

    template: str | None = None
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    end_ids: tuple[int, ...] = ()


def conversation_of(tokenizer: Tokenizer) -> Conversation:
    """What stands beside a tokenizer's file; nothing where it has none.

    Raises:
      UserError: a file there cannot be read, or is a link out of its folder.
    """
    files = {file.name: file for file in companions(tokenizer.name)}
    config, generation = _object(files.get(_CONFIG)), _object(files.get(_GENERATION))
    names = {}
    for name, value in config.items():
        # A name, or all of its settings.
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            names[name] = content

    template = _named_default(config.get(_FIELD))
    if _TEMPLATE in files:
        template = _text(files[_TEMPLATE])
    ends = generation.get("eos_token_id")
    ids = [tokenizer.control_ids.get(names.get("eos_token", ""))]
    ids += ends if isinstance(ends, list) else [ends]
    return Conversation(template, names, _that_exist(ids, tokenizer))


def _that_exist(ids: list[Any], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Those of some ids that a text can end with."""
    has_token = tokenizer.has_token
    return tuple(
        dict.fromkeys(
            i
            for i in ids
            if is_whole(i) and 0 <= i < len(has_token) and has_token[i] and i != tokenizer.eos_id
        )
    )


def _named_default(template: Any) -> str | None:
    """A template, of several that called `default`."""
    if isinstance(template, list):
        by_name = {each.get("name"): each for each in template if isinstance(each, dict)}
        template = by_name.get("default", {}).get("template")
    return template if isinstance(template, str) else None


def _object(file: storage.Path | None) -> dict[str, Any]:
    """The object of a JSON file; nothing where there is none."""
    if file is None:
        return {}
    try:
        value = storage.read_json(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); mend or remove it") from None
    if not isinstance(value, dict):
        raise UserError(f"{file} is no JSON object; mend or remove it")
    return value


def _text(file: storage.Path) -> str:
    try:
        return storage.read_text(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); mend or remove it") from None
