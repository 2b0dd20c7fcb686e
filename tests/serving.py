"""A service on a real socket of this machine, in a thread of the test's process, and what is asked of it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fakes import DemoAnalyser, as_text_model, build_index

from indexer.records import Document
from search.server import run
from search.server.auth import Tokens, parse_token
from search.server.service import Service
from search.server.settings import Limits, Settings

READER, WRITER = "reader-token-0123456789", "writer-token-0123456789"

TEXTS = {
    "steel": ("Halden runs out of steel", {"year": 2019, "tags": ["trade", "metal"]}),
    "boat": ("an electric boat crosses to Varberg", {"year": 2023, "author": {"name": "Ada"}}),
    "song": ("a song about Anna and the sea", {"year": 2021}),
    "ball": ("the ball is lost again", {"year": 2019}),
    "atom": ("every atom of Nordal counts", {"year": 2023}),
}


def documents() -> list[Document]:
    """Five documents; Halden, Anna are PER, Nordal is ORG, Varberg is LOC by `DemoAnalyser`'s rules."""
    return [Document(id_, text, metadata) for id_, (text, metadata) in TEXTS.items()]


def demo_service(folder: Path, *names: str, tokens: tuple[str, ...] = (), **settings: Any) -> Service:
    """A service over new indexes with these documents; `limits` as a dict."""
    analyser = DemoAnalyser()
    paths = {name: build_index(folder / name, documents(), analyser) for name in names or ("demo",)}
    limits = Limits(**settings.pop("limits", {}))
    return Service(
        paths,
        settings=Settings(limits=limits, **{"linger": 0.05, **settings}),
        tokens=Tokens(parse_token(token) for token in tokens),
        model=as_text_model(analyser),
    )


@contextmanager
def listening(service: Service) -> Iterator[str]:
    """The address of a service while it runs."""
    server = uvicorn.Server(run.config_of(service))
    with run.listen("127.0.0.1", 0) as listener:
        url = run.url_of(listener)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.005)
            yield url
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def client_of(service: Service, **options: Any) -> Iterator[httpx.Client]:
    """A client of a service that runs meanwhile."""
    with listening(service) as url, httpx.Client(base_url=url, timeout=30, trust_env=False, **options) as client:
        yield client


def problem(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """The problem details object of an answer that must be one."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    content: dict[str, Any] = response.json()
    assert (response.status_code, content["status"], content["type"]) == (status, status, f"urn:tagdex:problem:{kind}")
    assert content["request_id"] == response.headers["x-request-id"]
    return content


def raw(url: str, data: bytes, *, close: bool = False) -> socket.socket:
    """A connection on which some bytes were sent."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(data)
    if close:
        connection.close()
    return connection


def until_closed(connection: socket.socket) -> bytes:
    """What comes on a connection until the service closes it, by its end or by a reset."""
    received = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(65_536):
            received += piece
    return received
