"""What a client is answered, in OpenAI's shapes."""

import dataclasses
import time
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np

from matta_jax.serving._completions import TextStream, Token
from matta_jax.serving._menu import Menu
from matta_jax.serving.server._feed import Piece, spans
from matta_jax.serving.server._questions import Question
from matta_jax.tokenizers import Tokenizer

_COMPLETION, _CHAT, _CHAT_CHUNK = "text_completion", "chat.completion", "chat.completion.chunk"


@dataclasses.dataclass
class _Text:
    """A text so far, with what each token added."""

    stream: TextStream
    text: str = ""
    tokens: list[Token] = dataclasses.field(default_factory=list)
    pieces: list[str] = dataclasses.field(default_factory=list)
    finish_reason: str | None = None


class Answer:
    """The texts of a question, put together from pieces.

    Args:
      question: which is answered.
      tokenizer: of its model.
    """

    def __init__(self, question: Question, tokenizer: Tokenizer):
        prefix = "chatcmpl" if question.is_chat else "cmpl"
        self._id = f"{prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._question = question
        self._tokenizer = tokenizer
        self._texts = [_Text(TextStream(tokenizer)) for _ in question.requests]

    @property
    def is_done(self) -> bool:
        """Whether all its texts have ended."""
        return all(text.finish_reason is not None for text in self._texts)

    def add(self, piece: Piece) -> dict[str, Any]:
        """Adds a piece; returns what a stream tells of it."""
        text = self._texts[piece.number]
        is_first = not text.tokens and not text.text
        start, first = len("".join(text.pieces)), len(text.tokens)
        text.text += piece.text
        text.tokens += piece.tokens
        text.finish_reason = piece.finish_reason
        question = self._question
        if question.num_top is not None or question.tells_pieces:
            text.pieces += spans(text.stream, piece.tokens, self._tokenizer.eos_id)

        echo = question.prompts[piece.number] if question.echoes and is_first else ""
        choice: dict[str, Any] = {"index": piece.number, "finish_reason": piece.finish_reason}
        if question.is_chat:
            choice["delta"] = {"content": piece.text}
            if is_first:
                choice["delta"]["role"] = "assistant"
        else:
            choice["text"] = echo + piece.text
        choice["logprobs"] = self._log_p(text, first, start)
        if question.tells_pieces:
            new = zip(text.pieces[first:], piece.tokens, strict=True)
            choice["pieces"] = [[part, token.is_drafted] for part, token in new]
        name = _CHAT_CHUNK if question.is_chat else _COMPLETION
        return self._around(name, [choice])

    def full(self) -> dict[str, Any]:
        """All of it."""
        question = self._question
        choices = []
        for number, text in enumerate(self._texts):
            choice: dict[str, Any] = {"index": number, "finish_reason": text.finish_reason}
            if question.is_chat:
                choice["message"] = {"role": "assistant", "content": text.text}
            else:
                choice["text"] = question.prompts[number] * question.echoes + text.text
            choice["logprobs"] = self._log_p(text, 0, 0)
            choices.append(choice)
        body = self._around(_CHAT if question.is_chat else _COMPLETION, choices)
        return body | {"usage": self._usage()}

    def last(self) -> dict[str, Any] | None:
        """What ends a stream, if the client asked for it."""
        if not self._question.tells_usage:
            return None
        name = _CHAT_CHUNK if self._question.is_chat else _COMPLETION
        return self._around(name, []) | {"usage": self._usage()}

    def _around(self, name: str, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": name,
            "created": self._created,
            "model": self._question.entry.spec,
            "choices": list(choices),
        }

    def _usage(self) -> dict[str, int]:
        prompt = self._question.num_prompt_tokens
        added = sum(len(text.tokens) for text in self._texts)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": added,
            "total_tokens": prompt + added,
        }

    def _log_p(self, text: _Text, first: int, start: int) -> dict[str, Any] | None:
        """Log-probabilities of the tokens from a first one on, which begins at a character."""
        num_top = self._question.num_top
        if num_top is None:
            return None
        tokens, pieces = text.tokens[first:], text.pieces[first:]
        tops = [
            [(self._name(id_), log_p) for id_, log_p in token.top[:num_top]] for token in tokens
        ]
        if self._question.is_chat:
            return {
                "content": [
                    _told(self._name(token.id), token.log_p)
                    | {"top_logprobs": [_told(name, log_p) for name, log_p in top]}
                    for token, top in zip(tokens, tops, strict=True)
                ]
            }
        offsets = []
        for piece in pieces:
            offsets.append(start)
            start += len(piece)
        return {
            "tokens": [self._name(token.id) for token in tokens],
            "token_logprobs": [token.log_p for token in tokens],
            "top_logprobs": [dict(top) for top in tops] if num_top else None,
            "text_offset": offsets,
        }

    def _name(self, id_: int) -> str:
        if id_ == self._tokenizer.eos_id:
            return "<end>"
        if id_ >= self._tokenizer.vocab_size:
            return f"<{id_}>"
        text = self._tokenizer.decode(np.array([id_], np.int32))
        # A part of a character has no text; OpenAI tells its bytes.
        return f"<{id_}>" if "\ufffd" in text else text


def _told(name: str, log_p: float) -> dict[str, Any]:
    return {"token": name, "logprob": log_p, "bytes": list(name.encode())}


def models_of(menu: Menu) -> dict[str, Any]:
    """What is served, by size."""
    return {
        "object": "list",
        "data": [
            {
                "id": entry.spec,
                "object": "model",
                "created": 0,
                "owned_by": "matta_jax",
                "parameters": entry.params,
                "mb": entry.mb,
                "widths": list(entry.widths),
                "quality": entry.quality,
                "quality_unit": menu.unit,
                "ms_per_token": entry.ms,
            }
            for entry in menu.entries
        ],
    }
