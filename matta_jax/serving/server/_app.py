"""The server's pages: what is asked, how it is refused, and how texts go out."""

import asyncio
import contextlib
import dataclasses
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from matta_jax import storage
from matta_jax.errors import UserError
from matta_jax.serving.server._answers import Answer, models_of
from matta_jax.serving.server._feed import FAILED, BusyError, EngineThread, FailedError, Feed
from matta_jax.serving.server._metrics import CONTENT_TYPE, metrics_text
from matta_jax.serving.server._questions import Rules, read_question

_PAGE = "page.html"
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; img-src data:; frame-ancestors 'none'"
}
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    429: "rate_limit_error",
}


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What a server takes.

    Attributes:
      body_bytes: of a request, at most.
      seconds: of a request, from its first byte to its last answer.
      api_key: clients must give it; None: they need none.
    """

    body_bytes: int = 2**20
    seconds: float = 600.0
    api_key: str | None = None

    def __post_init__(self) -> None:
        if self.body_bytes < 1:
            raise UserError(f"max_body_kb must be above 0, and body_bytes is {self.body_bytes}")
        if not self.seconds > 0:
            raise UserError(f"timeout={self.seconds} must be above 0 seconds")
        if self.api_key is not None and not self.api_key.strip():
            raise UserError("api_key is empty; give a secret, or leave it out")


class _Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status = status
        self.message = " ".join(message.split())
        self.code = code

    @property
    def body(self) -> dict[str, Any]:
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else _KINDS[400])
        error = {"message": self.message, "type": kind, "param": None, "code": self.code}
        return {"error": error}


def make_app(thread: EngineThread, rules: Rules, bounds: Bounds) -> Starlette:
    """An ASGI application. It starts the engine's thread, and at its end waits for that to end.

    Args:
      thread: not started.
      rules: what questions are read by.
      bounds: what it takes.
    """
    server = _Server(thread, rules, bounds)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        thread.start()
        yield
        await asyncio.to_thread(thread.stop)

    routes = [
        Route("/", server.page),
        Route("/health", server.health),
        Route("/metrics", server.metrics),
        Route("/v1/models", server.models),
        Route("/v1/models/{spec:path}", server.model),
        Route("/v1/completions", server.completions, methods=["POST"]),
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
    ]
    handlers: dict[Any, Callable[[HttpRequest, Any], Awaitable[Response]]] = {
        _Refusal: _answer_refusal,
        UserError: _answer_mistake,
        HTTPException: _answer_http,
        Exception: _answer_defect,
    }
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)


async def _answer_refusal(request: HttpRequest, refusal: Any) -> Response:
    headers = {"retry-after": "1"} if refusal.status == 429 else None
    # What was not read of a body is no next request.
    if refusal.status in (408, 413):
        headers = {"connection": "close"}
    return JSONResponse(refusal.body, refusal.status, headers)


async def _answer_mistake(request: HttpRequest, error: Any) -> Response:
    if isinstance(error, BusyError):
        return await _answer_refusal(request, _Refusal(429, str(error), "queue_full"))
    status = 503 if isinstance(error, FailedError) else 400
    return await _answer_refusal(request, _Refusal(status, str(error)))


async def _answer_http(request: HttpRequest, error: Any) -> Response:
    words = {404: "is no page of this server", 405: f"is not asked by {request.method}"}
    what = words.get(error.status_code, str(error.detail))
    refusal = _Refusal(error.status_code, f"{request.url.path[:100]} {what}")
    return await _answer_refusal(request, refusal)


async def _answer_defect(request: HttpRequest, error: Any) -> Response:
    return await _answer_refusal(request, _Refusal(500, "the server failed; its log says why"))


class _Server:
    """The answers to each page."""

    def __init__(self, thread: EngineThread, rules: Rules, bounds: Bounds):
        self._thread = thread
        self._rules = rules
        self._bounds = bounds
        self._page = storage.read_text(storage.path(__file__).with_name(_PAGE))

    async def page(self, request: HttpRequest) -> Response:
        return HTMLResponse(self._page, headers=_PAGE_HEADERS)

    async def health(self, request: HttpRequest) -> Response:
        if self._thread.has_failed:
            raise FailedError("the engine has failed; start the server again")
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: HttpRequest) -> Response:
        self._check_key(request)
        return PlainTextResponse(metrics_text(self._thread), media_type=CONTENT_TYPE)

    async def models(self, request: HttpRequest) -> Response:
        self._check_key(request)
        return JSONResponse(models_of(self._rules.menu))

    async def model(self, request: HttpRequest) -> Response:
        self._check_key(request)
        spec = request.path_params["spec"]
        for model in models_of(self._rules.menu)["data"]:
            if model["id"] == spec:
                return JSONResponse(model)
        raise _Refusal(404, f"model={spec[:100]!r} is not served", "model_not_found")

    async def completions(self, request: HttpRequest) -> Response:
        return await self._answered(request, is_chat=False)

    async def chat(self, request: HttpRequest) -> Response:
        return await self._answered(request, is_chat=True)

    async def _answered(self, request: HttpRequest, *, is_chat: bool) -> Response:
        self._check_key(request)
        started_at = asyncio.get_running_loop().time()
        deadline = started_at + self._bounds.seconds
        body = await self._body(request, deadline)
        # A long text takes its tokenizer long, and others would wait for it.
        question = await asyncio.to_thread(read_question, body, self._rules, is_chat=is_chat)
        feed = self._thread.submit(question.requests)
        answer = Answer(question, self._rules.tokenizer)
        if question.streams:
            return _EventStream(feed, answer, deadline)
        try:
            await _until_gone(self._gather(feed, answer, deadline), request.receive)
        finally:
            feed.cancel()
        return JSONResponse(answer.full())

    async def _gather(self, feed: Feed, answer: Answer, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                while not answer.is_done:
                    answer.add(_checked(await feed.next()))
        except TimeoutError:
            raise _late(self._bounds.seconds) from None

    def _check_key(self, request: HttpRequest) -> None:
        key = self._bounds.api_key
        if key is None:
            return
        shown = request.headers.get("authorization", "")
        if not hmac.compare_digest(shown.encode(), f"Bearer {key}".encode()):
            raise _Refusal(401, "the api key is missing or wrong: send 'Authorization: Bearer KEY'")

    async def _body(self, request: HttpRequest, deadline: float) -> Any:
        most = self._bounds.body_bytes
        parts, size = [], 0
        try:
            async with asyncio.timeout_at(deadline):
                async for part in request.stream():
                    size += len(part)
                    if size > most:
                        raise _Refusal(413, f"the body is larger than {most} bytes; send less")
                    parts.append(part)
        except TimeoutError:
            raise _late(self._bounds.seconds) from None
        try:
            return storage.parse_json(b"".join(parts).decode())
        except ValueError as error:
            raise _Refusal(400, f"the body is no JSON ({str(error)[:100]})") from None


def _late(seconds: float) -> _Refusal:
    return _Refusal(408, f"it took longer than {seconds:g} s; ask for fewer tokens", "timeout")


def _checked(piece: Any) -> Any:
    """A piece. Raises FailedError where it is of an engine that has failed."""
    if piece.finish_reason == FAILED:
        raise FailedError("the engine has failed; start the server again")
    return piece


async def _until_gone(work: Any, receive: Receive) -> None:
    """Awaits work as long as the client is there. Raises what the work does, and a refusal that
    nobody reads where the client has left.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _Refusal(499, "the client has left")
        task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    """Returns when the client has left."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return


class _EventStream(Response):
    """Pieces as they come, as server-sent events; given up when the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, feed: Feed, answer: Answer, deadline: float):
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._feed = feed
        self._answer = answer
        self._deadline = deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            await send(start)
            # A client that has left, or that does not read: there is nobody to tell.
            with contextlib.suppress(_Refusal, OSError, TimeoutError):
                await _until_gone(self._send_all(send), receive)
        finally:
            self._feed.cancel()

    async def _send_all(self, send: Send) -> None:
        error = None
        try:
            async with asyncio.timeout_at(self._deadline):
                while not self._answer.is_done:
                    chunk = self._answer.add(_checked(await self._feed.next()))
                    await _send_event(send, storage.json_text(chunk))
        except TimeoutError:
            error = _Refusal(408, "the request took too long; ask for fewer tokens", "timeout")
        except FailedError as failure:
            error = _Refusal(503, str(failure))

        # The end itself must not wait for a client that does not read.
        async with asyncio.timeout(5):
            if error is not None:
                await _send_event(send, storage.json_text(error.body))
            elif (last := self._answer.last()) is not None:
                await _send_event(send, storage.json_text(last))
            await _send_event(send, "[DONE]")
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_event(send: Send, text: str) -> None:
    body = f"data: {text}\n\n".encode()
    await send({"type": "http.response.body", "body": body, "more_body": True})
