"""A server as a process: its socket, and how it ends."""

import contextlib
import dataclasses
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from matta_jax import stops
from matta_jax.errors import UserError
from matta_jax.serving._drafts import Draft
from matta_jax.serving._engine import Engine
from matta_jax.serving._menu import Choice, load_menu
from matta_jax.serving._prompts import Vocabulary, check_writes, ids_with_token
from matta_jax.serving.server._app import Bounds, make_app
from matta_jax.serving.server._chat import chat_template
from matta_jax.serving.server._feed import EngineThread
from matta_jax.serving.server._questions import Rules
from matta_jax.tokenizers import conversation_of, fitting_tokenizer

_TURN_SECONDS = 0.1  # Those who read a stream see it go on.
_UNBOUNDED = 2**31


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a server serves.

    Attributes:
      slots: texts that are written at once.
      draft_tokens: that a draft proposes at once, at most.
      queue: texts that wait for a slot, at most.
      max_tokens: of a text.
      chat_template: file of it; None: the model's own.
      cache_dtype: as of `Engine`.
      bounds: of a request.
    """

    slots: int = 8
    draft_tokens: int = 4
    queue: int = 256
    max_tokens: int = 4096
    chat_template: str | None = None
    cache_dtype: str = "float32"
    bounds: Bounds = dataclasses.field(default_factory=Bounds)

    def __post_init__(self) -> None:
        for name in ("queue", "max_tokens"):
            value = getattr(self, name)
            if value < 1:
                raise UserError(f"{name}={value} must be at least 1")


def load_app(choice: Choice, settings: Settings) -> tuple[Any, list[str]]:
    """The application that serves a choice, and what it says of itself: lines for people.

    Raises:
      UserError: as `load_menu` and `Engine`; or a chat template that cannot be read.
    """
    loaded = load_menu(choice)
    menu, model = loaded.menu, loaded.models[0]
    check_writes(model)
    tokenizer = fitting_tokenizer(model.config.data.tokenizer, model.config.model.vocab_size)
    conversation = conversation_of(tokenizer)
    chat = chat_template(settings.chat_template, conversation)
    vocab_size = model.architecture.vocab_size
    allowed = ids_with_token(tokenizer, vocab_size)
    vocabulary = Vocabulary(tokenizer.eos_id, tokenizer, allowed, conversation.end_ids)
    draft = None if loaded.draft is None else Draft(loaded.draft, settings.draft_tokens)
    # Its thread counts those that wait, all of a request together.
    engine = Engine(
        loaded.models,
        vocabulary,
        slots=settings.slots,
        draft=draft,
        most_waiting=_UNBOUNDED,
        turn_seconds=_TURN_SECONDS,
        cache_dtype=settings.cache_dtype,
        takes_weights=True,
    )
    rules = Rules(menu, tokenizer, chat, settings.max_tokens, vocab_size)
    thread = EngineThread(engine, settings.queue)
    weights, caches = (size / 1e6 for size in engine.bytes)
    shared = "" if choice.mesh is None else f", shared by {choice.mesh.size} devices"
    lines = [
        f"{len(menu.entries)} models of {menu.entries[0].params:,} to {menu.entries[-1].params:,} "
        f"parameters in {weights:.3g} MB; {caches:.3g} MB of caches in {settings.slots} slots"
        f"{shared}",
        "conversations: by " + (settings.chat_template or "the model's own template")
        if chat
        else "no conversations: the model has no chat template",
    ]
    return make_app(thread, rules, settings.bounds), lines


def serve(app: Any, host: str, port: int, log: Callable[[str], None]) -> None:
    """Serves until a SIGTERM or Ctrl-C, then refuses what is new, and ends when what was asked is
    answered.

    Args:
      app: of `load_app`.
      host: address to listen at.
      port: of it; 0: a free one.
      log: takes the line that tells the address.

    Raises:
      UserError: the address cannot be used.
    """
    if not 0 <= port < 2**16:
        raise UserError(f"port={port} must be from 0 to {2**16 - 1}")
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    with _listening(host, port) as listener:
        address = listener.getsockname()
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        server = _Server(config, f"serving at http://{shown}:{address[1]}", log)
        server.run(sockets=[listener])


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"host={host!r}: {error.strerror}; name an address of here") from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise UserError(
                f"host={host!r}, port={port}: {error.strerror}; name another port"
            ) from None
        yield listener


class _Server(uvicorn.Server):
    """One that says where it is, and whose signals let it end in order."""

    def __init__(self, config: uvicorn.Config, line: str, log: Callable[[str], None]):
        super().__init__(config)
        self._line = line
        self._log = log

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._log(self._line)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        def drain(number: int, frame: object) -> None:
            # It takes as long as the texts that are being written; a second signal ends it at once.
            stops.answer()
            self.should_exit = True

        numbers = (signal.SIGTERM, signal.SIGINT)
        previous = {number: signal.signal(number, drain) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
