"""What every request passes: an id, its host, its token, the limits, a slot, its time; then the log and the metrics.

A plain ASGI application around the one with the routes.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from search.server import log
from search.server.auth import is_loopback, needed_scope, without_port
from search.server.problems import MEDIA_TYPE, Problem, beyond, to_bytes
from search.server.routes.documents import STREAM_TYPES
from search.server.service import Service

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

GONE = 499  # in the log: the client closed the connection before there was an answer

PASSED, PASSED_SECONDS = 16 * 2**20, 1.0  # bytes and time of a refused body that is read all the same

SECURITY_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class ClientGoneError(Exception):
    """The connection was closed before there was an answer."""


@dataclass(slots=True)
class Exchange:
    """One request and its answer, for the log."""

    scope: Scope
    arrive: Receive
    send: Send
    request_id: str
    started: float = field(default_factory=time.perf_counter)
    status: int = 0
    received: int = 0
    sent: int = 0
    whole: bool = False  # the body has been read to its end
    waits: bool = False  # the client sends its body after "100 Continue", which the first `receive` tells it

    @property
    def method(self) -> str:
        """The method, or OTHER: clients can make up as many as they like."""
        return self.scope["method"] if self.scope["method"] in _METHODS else "OTHER"

    @property
    def route(self) -> str:
        """The route's template, never the path itself, which may name a document."""
        route = self.scope.get("route")
        return getattr(route, "path", None) or "unmatched"

    async def receive(self) -> Message:
        """The next piece of the request."""
        self.waits = False
        message = await self.arrive()
        self.whole = self.whole or message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def _let_pass(self) -> None:
        """Read what is left of a body, for a while: a client that is still sending would not see the answer."""
        left = PASSED
        with suppress(TimeoutError):
            async with asyncio.timeout(PASSED_SECONDS):
                while not self.whole and left > 0:
                    left -= len((await self.receive()).get("body", b""))

    async def answer(self, message: Message) -> None:
        """Send a part of the answer, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            if not self.whole and not self.waits and message["status"] != 408:
                await self._let_pass()
            self.status = message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode()), *SECURITY_HEADERS]
            if self.scope["path"].startswith("/v1/"):
                headers.append((b"cache-control", b"no-store"))
            if not self.whole:  # what is still sent of the body would keep the connection for ever
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        else:
            self.sent += len(message.get("body", b""))
        await self.send(message)

    async def refuse(self, problem: Problem) -> None:
        """Answer with a problem."""
        content = problem.to_json(request_id=self.request_id)
        if self.scope["path"] == "/v1/embeddings":
            content |= openai_error(problem)
        body = to_bytes(content)
        headers = {"Content-Type": MEDIA_TYPE, "Content-Length": str(len(body)), **problem.headers}
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.answer({"type": "http.response.start", "status": problem.status, "headers": encoded})
        await self.answer({"type": "http.response.body", "body": b"" if self.scope["method"] == "HEAD" else body})


def openai_error(problem: Problem) -> dict[str, Any]:
    """What OpenAI's clients look for in an error, as a further member."""
    return {"error": {"message": problem.detail, "type": problem.kind, "param": None, "code": problem.kind}}


class Gate:
    """The way in."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._held = 0  # bytes of bodies
        self._streams = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; the lifespan goes through."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = _headers(scope)
        given = headers.get("x-request-id", "")
        exchange = Exchange(scope, receive, send, given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex)
        exchange.waits = headers.get("expect", "").lower() == "100-continue"
        scope["request_id"] = exchange.request_id
        try:
            await self._pass(exchange, headers, exchange.receive)
        except ClientGoneError:
            exchange.status = GONE
        except Problem as problem:
            if not exchange.status:
                await exchange.refuse(problem)
        except asyncio.CancelledError:  # by a stop, whose time for running requests is over
            if not exchange.status:
                await exchange.refuse(Problem(503, "unavailable", "the service is being stopped", retry_after=10))
        except Exception as error:  # whatever it is, the client learns nothing of it
            fields = {"request_id": exchange.request_id, "route": exchange.route}
            log.ERRORS.error("unforeseen error", exc_info=error, extra={"fields": fields})
            if not exchange.status:
                await exchange.refuse(Problem(500, "internal", "the request could not be answered"))
        finally:
            self._note(exchange)

    async def _pass(self, exchange: Exchange, headers: Mapping[str, str], receive: Receive) -> None:
        scope, limits = exchange.scope, self._service.limits
        self._check_host(headers)
        _check_path(scope["path"])
        self._check_token(scope, headers)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and scope["path"] == "/v1/documents" and kind in STREAM_TYPES:
            await self._stream(exchange, headers, receive)
            return
        deadline = asyncio.get_running_loop().time() + limits.seconds
        body = await self._body(exchange, headers, receive, deadline)
        try:
            self._log_text(exchange, body)
            await self._answer(exchange, body, receive, deadline)
        finally:
            self._held -= len(body)

    def _check_host(self, headers: Mapping[str, str]) -> None:
        """Nobody needs a token, so a page elsewhere must not reach us under a name of its own (DNS rebinding)."""
        if self._service.settings.loopback_only and not is_loopback(without_port(headers.get("host", ""))):
            raise Problem(400, "wrong-host", "this service answers to localhost only")

    def _check_token(self, scope: Scope, headers: Mapping[str, str]) -> None:
        needed = needed_scope(scope["method"], scope["path"])
        if needed is None or not self._service.tokens:
            return
        scopes = self._service.tokens.scopes(headers.get("authorization"))
        if scopes is None:
            problem = Problem(401, "unauthorized", "send a token of this service: 'Authorization: Bearer TOKEN'")
            problem.headers["WWW-Authenticate"] = "Bearer"
            raise problem
        if needed not in scopes:
            raise Problem(403, "forbidden", f"this needs a token with the scope '{needed}'")

    async def _body(self, exchange: Exchange, headers: Mapping[str, str], receive: Receive, deadline: float) -> bytes:
        """The whole body, within the limits of one, of all that are held, and of time. Counts as held until let go."""
        limits = self._service.limits
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > limits.body:
            raise beyond("body", limits.body, int(length), "the bytes of a body", status=413)
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    piece = message.get("body", b"")
                    size += len(piece)
                    self._held += len(piece)
                    if size > limits.body:
                        raise beyond("body", limits.body, None, "the bytes of a body", status=413)
                    if self._held > limits.memory:
                        raise _busy("memory", limits.memory, "the bytes of all bodies")
                    pieces.append(piece)
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            self._held -= size
            raise Problem(
                408, "timeout", f"the body did not arrive within {limits.seconds:g} seconds", limit="seconds"
            ) from None
        except BaseException:
            self._held -= size
            raise
        exchange.received = size
        return b"".join(pieces)

    async def _answer(self, exchange: Exchange, body: bytes, receive: Receive, deadline: float) -> None:
        """Run the routes with one of the slots, until they are done, the time is over, or the client has gone."""
        service, limits = self._service, self._service.limits
        counted = exchange.scope["path"].startswith("/v1/")
        if counted and service.under_way >= limits.requests:
            raise _busy("requests", limits.requests, "the requests under way")
        service.under_way += counted
        task = asyncio.ensure_future(self._app(exchange.scope, _replay(body), exchange.answer))
        gone = asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait(
                {task, gone},
                timeout=max(0.0, deadline - asyncio.get_running_loop().time()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if task.done():
                task.result()
            elif gone.done():
                raise ClientGoneError
            else:
                raise Problem(
                    503,
                    "timeout",
                    f"there was no answer within {limits.seconds:g} seconds",
                    retry_after=1,
                    limit="seconds",
                    maximum=limits.seconds,
                )
        finally:
            service.under_way -= counted
            gone.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    async def _stream(self, exchange: Exchange, headers: Mapping[str, str], receive: Receive) -> None:
        """As `_answer`, for a body that is read piece by piece while it is worked on."""
        limits = self._service.limits
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > limits.stream:
            raise beyond("stream", limits.stream, int(length), "the bytes of a stream", status=413)
        if self._streams >= limits.streams:
            raise _busy("streams", limits.streams, "the streams under way")

        async def piece() -> Message:
            try:
                async with asyncio.timeout(limits.seconds):
                    message = await receive()
            except TimeoutError:
                raise Problem(
                    408, "timeout", f"nothing arrived for {limits.seconds:g} seconds", limit="seconds"
                ) from None
            exchange.received += len(message.get("body", b""))
            if exchange.received > limits.stream:
                raise beyond("stream", limits.stream, None, "the bytes of a stream", status=413)
            return message

        self._streams += 1
        try:
            await self._app(exchange.scope, piece, exchange.answer)
        finally:
            self._streams -= 1

    def _log_text(self, exchange: Exchange, body: bytes) -> None:
        """With --log-texts: what was asked, which may be private."""
        if self._service.settings.log_texts and exchange.scope["path"].startswith("/v1/") and body:
            text = body[:2_000].decode("utf-8", "replace")
            log.ACCESS.info("", extra={"fields": {"request_id": exchange.request_id, "body": text}})

    def _note(self, exchange: Exchange) -> None:
        """One line in the log, and one count."""
        seconds = time.perf_counter() - exchange.started
        client = exchange.scope.get("client")
        fields = {
            "request_id": exchange.request_id,
            "client": client[0] if client else None,
            "method": exchange.method,
            "route": exchange.route,
            "status": exchange.status,
            "milliseconds": round(1_000 * seconds, 2),
            "bytes_in": exchange.received,
            "bytes_out": exchange.sent,
        }
        log.ACCESS.info("", extra={"fields": fields})
        self._service.metrics.observe(
            method=exchange.method, route=exchange.route, status=exchange.status, seconds=seconds
        )


def _check_path(path: str) -> None:
    """A pattern of a route ends in `$`, which is also true before a last newline: what is checked here by its path
    would be another request there."""
    if _CONTROL.search(path):
        raise Problem(404, "not-found", "there is no path with a control character")


def _busy(limit: str, maximum: int, what: str) -> Problem:
    return Problem(
        429,
        "too-many-requests",
        f"{what} are {maximum:,} at most: come again",
        retry_after=1,
        limit=limit,
        maximum=maximum,
    )


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _replay(body: bytes) -> Receive:
    """A `receive` that gives a body that was read already."""
    given = False

    async def receive() -> Message:
        nonlocal given
        if given:
            await asyncio.Event().wait()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
