"""What a client asks, read strictly: each field's kind and bounds, in OpenAI's words."""

import dataclasses
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from matta_jax.errors import UserError, did_you_mean, shorten
from matta_jax.serving._completions import Request
from matta_jax.serving._menu import Entry, Limits, Menu
from matta_jax.serving._prompts import started_ids, template_ids
from matta_jax.serving._sampling import Sampling
from matta_jax.serving.server._chat import ChatTemplate
from matta_jax.storage import is_number, is_whole
from matta_jax.tokenizers import Tokenizer

AUTO = "auto"
"""The model that a budget chooses, or the best."""

_MOST_TEXTS = 64
_MOST_STOPS = 16

_Check = Callable[[Any], bool]
_KINDS: dict[str, tuple[_Check, str]] = {
    "whole": (lambda value: is_whole(value) and abs(value) < 2**31, "a whole number below 2^31"),
    "seed": (is_whole, "a whole number"),
    "number": (lambda value: is_number(value) and abs(value) < 1e30, "a number below 1e30"),
    "flag": (lambda value: isinstance(value, bool), "true or false"),
    "text": (lambda value: isinstance(value, str), "a text"),
    "object": (lambda value: isinstance(value, dict), "an object"),
    "any": (lambda value: True, "anything"),
}
_FIELDS = {
    "model": "text",
    "n": "whole",
    "temperature": "number",
    "top_p": "number",
    "top_k": "whole",
    "min_p": "number",
    "repetition_penalty": "number",
    "seed": "seed",
    "stop": "any",
    "logit_bias": "object",
    "stream": "flag",
    "stream_options": "object",
    "max_tokens": "whole",
    "max_params": "number",
    "max_ms_per_token": "number",
    "max_mb": "number",
    "pieces": "flag",
    "user": "text",
    "frequency_penalty": "number",
    "presence_penalty": "number",
}
_OF_PROMPTS = {"prompt": "any", "echo": "flag", "logprobs": "whole", "best_of": "whole"}
_OF_PROMPTS |= {"suffix": "text"}
_OF_CHATS = {"messages": "any", "logprobs": "flag", "top_logprobs": "whole"}
_OF_CHATS |= {"max_completion_tokens": "whole"}
# What OpenAI's clients may send, where it asks for nothing.
_NEUTRAL = {"frequency_penalty": 0, "presence_penalty": 0, "suffix": ""}


@dataclasses.dataclass(frozen=True)
class Rules:
    """What questions are read by.

    Attributes:
      menu: what is served.
      tokenizer: of all models.
      chat: makes prompts of conversations; None: there are none.
      most_tokens: of a text.
      vocab_size: ids of the models.
    """

    menu: Menu
    tokenizer: Tokenizer
    chat: ChatTemplate | None
    most_tokens: int
    vocab_size: int


@dataclasses.dataclass(frozen=True)
class Question:
    """What a client asks.

    Attributes:
      entry: the model that answers.
      requests: of the engine, those of one prompt side by side.
      prompts: the text before each, as it is echoed.
      is_chat: whether it is of messages.
      echoes, streams: whether the prompt stands before the text, and whether pieces are sent as
        they come.
      num_top: log-probabilities of so many tokens are told; None: of none.
      tells_usage: whether a stream ends with numbers of tokens.
      tells_pieces: whether a stream tells what each token adds, and which were drafted.
    """

    entry: Entry
    requests: tuple[Request, ...]
    prompts: tuple[str, ...]
    is_chat: bool = False
    echoes: bool = False
    streams: bool = False
    num_top: int | None = None
    tells_usage: bool = False
    tells_pieces: bool = False

    @property
    def num_prompt_tokens(self) -> int:
        """Of all prompts, each once."""
        return sum(len(request.ids) for request in self.requests if request.index == 0)


def read_question(body: Any, rules: Rules, *, is_chat: bool) -> Question:
    """What a body asks. Raises UserError, in one line, for what is wrong with it."""
    fields = _checked(body, is_chat)
    prompts = _chat_prompts(fields, rules) if is_chat else _prompts(fields, rules)
    count = fields.get("n", 1)
    if count < 1 or count * len(prompts) > _MOST_TEXTS:
        raise UserError(
            f"n={count} texts of {len(prompts)} prompts must be from 1 to {_MOST_TEXTS} in all"
        )
    if fields.get("best_of", count) != count:
        raise UserError(f"best_of={fields['best_of']} is not supported; ask for n texts")

    entry = _entry(fields, rules.menu)
    num_top = _num_top(fields, is_chat)
    if fields.get("echo") and num_top is not None:
        raise UserError("logprobs are of the text that is added; leave out echo")
    settings: dict[str, Any] = {
        "spec": entry.spec,
        "num_tokens": _num_tokens(fields, rules),
        "sampling": _sampling(fields),
        "stop": _stop(fields),
        "num_top": num_top or 0,
    }
    requests, texts = [], []
    for text, ids in prompts:
        for index in range(count):
            requests.append(Request(ids, index=index, **settings))
            texts.append(text)
    return Question(
        entry,
        tuple(requests),
        tuple(texts),
        is_chat,
        echoes=fields.get("echo", False),
        streams=fields.get("stream", False),
        num_top=num_top,
        tells_usage=bool(fields.get("stream_options", {}).get("include_usage")),
        tells_pieces=fields.get("pieces", False),
    )


def _checked(body: Any, is_chat: bool) -> dict[str, Any]:
    """The fields that are set. Raises UserError for one that is unknown, or of another kind."""
    if not isinstance(body, dict):
        raise UserError(f"the body must be a JSON object, not {shorten(body)}")
    kinds = _FIELDS | (_OF_CHATS if is_chat else _OF_PROMPTS)
    fields = {name: value for name, value in body.items() if value is not None}
    for name, value in fields.items():
        if name not in kinds:
            raise UserError(f"{shorten(name)} is no field{did_you_mean(name, kinds)}")
        is_kind, words = _KINDS[kinds[name]]
        if not is_kind(value):
            raise UserError(f"{name}={shorten(value)} must be {words}")
        if name in _NEUTRAL and value != _NEUTRAL[name]:
            raise UserError(
                f"{name}={shorten(value)} is not supported; leave it out"
                + ("; repetition_penalty is" if "penalty" in name else "")
            )
    return fields


def _prompts(fields: Mapping[str, Any], rules: Rules) -> list[tuple[str, tuple[int, ...]]]:
    """The text and tokens of each prompt."""
    value = fields.get("prompt", "")
    is_of_tokens = isinstance(value, list) and value and all(is_whole(each) for each in value)
    if not isinstance(value, list) or is_of_tokens:
        value = [value]
    if not value:
        raise UserError("prompt is an empty list; give a text")
    if len(value) > _MOST_TEXTS:
        raise UserError(f"prompt is a list of {len(value)}; give at most {_MOST_TEXTS}")
    return [_prompt(each, rules) for each in value]


def _prompt(value: Any, rules: Rules) -> tuple[str, tuple[int, ...]]:
    if isinstance(value, str):
        return value, started_ids(rules.tokenizer, value)
    if not isinstance(value, list) or not value or not all(is_whole(each) for each in value):
        raise UserError(
            f"prompt={shorten(value)} must be a text, a list of texts, or tokens: whole numbers"
        )
    if not 0 <= min(value) <= max(value) < rules.vocab_size:
        raise UserError(f"a prompt's tokens must be from 0 to {rules.vocab_size - 1}")
    has_text = [each for each in value if each < rules.tokenizer.vocab_size]
    return rules.tokenizer.decode(np.array(has_text, np.int32)), tuple(value)


def _chat_prompts(fields: Mapping[str, Any], rules: Rules) -> list[tuple[str, tuple[int, ...]]]:
    if rules.chat is None:
        raise UserError(
            "this server has no chat template: start it with --chat_template=FILE, or use "
            "/v1/completions"
        )
    text = rules.chat.render(fields.get("messages"), rules.tokenizer.control_ids)
    return [(text, template_ids(rules.tokenizer, text))]


def _entry(fields: Mapping[str, Any], menu: Menu) -> Entry:
    names = [field.name for field in dataclasses.fields(Limits)]
    limits = Limits(**{name: fields[name] for name in names if name in fields})
    spec = fields.get("model", AUTO)
    if spec == AUTO:
        return menu.choose(limits)
    if limits.any:
        raise UserError(
            f"model={shorten(spec)} is chosen already; give it, or a budget beside model={AUTO}"
        )
    return menu.named(spec)


def _num_tokens(fields: Mapping[str, Any], rules: Rules) -> int:
    count = fields.get("max_completion_tokens", fields.get("max_tokens", 16))
    if not 1 <= count <= rules.most_tokens:
        raise UserError(f"max_tokens={count} must be from 1 to {rules.most_tokens}")
    return count


def _num_top(fields: Mapping[str, Any], is_chat: bool) -> int | None:
    if not is_chat:
        return fields.get("logprobs")
    if "top_logprobs" in fields and not fields.get("logprobs"):
        raise UserError("top_logprobs needs logprobs=true")
    return fields.get("top_logprobs", 0) if fields.get("logprobs") else None


def _sampling(fields: Mapping[str, Any]) -> Sampling:
    bias = {}
    for token, value in fields.get("logit_bias", {}).items():
        if not token.isdecimal() or len(token) > 9 or not is_number(value):
            raise UserError(
                f"logit_bias={{{shorten(token)}: {shorten(value)}}} must be of tokens and numbers"
            )
        bias[int(token)] = float(value)
    values = {
        name: fields[name]
        for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
        if name in fields
    }
    return Sampling(**{"seed": secrets.randbelow(2**32)} | values, logit_bias=bias)


def _stop(fields: Mapping[str, Any]) -> tuple[str, ...]:
    stop = fields.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(each, str) for each in stops):
        raise UserError(f"stop={shorten(stop)} must be a text, or a list of texts")
    if len(stops) > _MOST_STOPS:
        raise UserError(f"stop is a list of {len(stops)}; give at most {_MOST_STOPS}")
    return tuple(stops)
