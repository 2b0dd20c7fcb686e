"""The process: a socket, uvicorn with its own bounds on slow clients, and an end within a known time."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from indexer.errors import TagdexError
from search.server import log
from search.server.app import create_app
from search.server.auth import is_loopback
from search.server.service import Service

GRACE = 7  # seconds that running requests have after a SIGTERM
HEAD_SECONDS = 10.0  # in which the head of a request must have come
UNREAD_SECONDS = 60.0  # in which a client must have taken a part of what was sent to it
UNSENT_BYTES = 128 * 1024  # that the system takes at a time, so that it shows how a client reads
HEAD_BYTES = 64 * 1024
BACKLOG = 1_024


class BindError(TagdexError):
    """The address cannot be listened on."""


class Protocol(H11Protocol):
    """uvicorn's, which lets a connection go when the head of a request does not come, or an answer is not read."""

    _late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        transport.set_write_buffer_limits(high=0)  # writing is paused while anything waits to be read
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """A client has sent something."""
        super().data_received(data)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        for timer in (self._late, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """A client does not take all that is sent to it."""
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        """It has taken all."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def _expect_head(self) -> None:
        """Begin or end the time for a head; it is not lengthened by every byte of one."""
        if self.conn.their_state is not h11.IDLE:
            if self._late is not None:
                self._late.cancel()
                self._late = None
        elif self._late is None:
            self._late = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _give_up(self) -> None:
        self._late = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()

    def _expect_reading(self) -> None:
        """Begin the time in which what waits to be read must become less."""
        left = self.transport.get_write_buffer_size()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self._give_up_unread, left)

    def _give_up_unread(self, before: int) -> None:
        if self.transport.get_write_buffer_size() < before:
            self._expect_reading()
        else:
            self.transport.abort()  # to close it would wait until all is read


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address. Raises `BindError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named, asyncio switches Nagle's algorithm off, which would hold an answer's body back for 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        listener.bind((host.strip("[]"), port))
        listener.listen(BACKLOG)  # whoever reads the address may connect at once, and waits until it is served
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise BindError(
            f"cannot listen on {host}, port {port}: {reason}; choose another with --host or --port"
        ) from error
    return listener


def check_address(host: str, *, tokens: bool) -> None:
    """Raise `BindError` where others than this machine could come in without a token."""
    if not tokens and not is_loopback(host):
        raise BindError(
            f"without a token only this machine may come in, and {host} is open to others: give one with --token or "
            "--token-file, or leave --host out"
        )


def config_of(service: Service) -> uvicorn.Config:
    """How uvicorn serves a service."""
    return uvicorn.Config(
        create_app(service),
        http=Protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE,
    )


def serve(service: Service, listener: socket.socket, *, on_start: Callable[[str], None]) -> None:
    """Answer requests until SIGTERM or SIGINT; then running ones are answered, and the process ends in ten seconds."""
    log.set_up(texts=service.settings.log_texts)
    server = uvicorn.Server(config_of(service))
    # uvicorn raises the signals that it has met again when it is done; then they mean nothing any more.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    on_start(url_of(listener))
    server.run(sockets=[listener])
    if service.busy:  # with a call that cannot be stopped; what it has not committed was never acknowledged
        log.ERRORS.warning("ended while a thread was still at work")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # to tear down torch takes seconds on a busy machine, and a thread at work would not end at all


def url_of(listener: socket.socket) -> str:
    """The address of a socket, as one types it into a browser."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
