"""Tokens, limits, overload, slow and vanished clients, and what the service says when something is wrong."""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
httpx = pytest.importorskip("httpx", reason="httpx is not installed")

from cross_encoders import save_cross_encoder
from serving import READER, WRITER, client_of, demo_service, listening, problem, raw, until_closed

from indexer.errors import TagdexError
from search.server import gate, log, run
from search.server.app import routes_of
from search.server.auth import TokenError, Tokens, needed_scope, parse_token
from search.server.settings import Limits

LIMITS = {
    "body": 4_000,
    "batch": 3,
    "k": 20,
    "text": 100,
    "filter": 200,
    "filter_depth": 4,
    "filters": 300,
    "requests": 4,
    "passages": 30,
}

# Every route, what it needs, and a request that it answers.
ROUTES: list[tuple[str, str, str | None, dict[str, Any]]] = [
    ("POST", "/v1/search", "read", {"json": {"query": "boat"}}),
    ("POST", "/v1/search/batch", "read", {"json": {"searches": [{"query": "boat"}]}}),
    ("POST", "/v1/similar", "read", {"json": {"ids": ["boat"]}}),
    ("POST", "/v1/facets", "read", {"json": {}}),
    ("POST", "/v1/tag", "read", {"json": {"text": "Anna"}}),
    ("POST", "/v1/embeddings", "read", {"json": {"model": "demo", "input": "boat"}}),
    ("GET", "/v1/documents/boat", "read", {}),
    ("GET", "/v1/indexes", "read", {}),
    ("GET", "/metrics", "read", {}),
    ("POST", "/v1/documents", "write", {"json": {"documents": [{"id": "a", "text": "b"}]}}),
    ("DELETE", "/v1/documents/a", "write", {}),
    ("DELETE", "/v1/documents", "write", {"params": {"filter": "year = 1"}}),
    ("GET", "/healthz", None, {}),
    ("GET", "/readyz", None, {}),
    ("GET", "/openapi.json", None, {}),
    ("GET", "/docs", None, {}),
    ("GET", "/", None, {}),
    ("GET", "/page/app.js", None, {}),
]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    tokens = (f"read:{READER}", f"write:{WRITER}")
    with client_of(demo_service(tmp_path_factory.mktemp("guarded"), tokens=tokens)) as client:
        yield client


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with client_of(demo_service(tmp_path_factory.mktemp("limited"), limits=LIMITS)) as client:
        yield client


@pytest.mark.parametrize(("method", "path", "scope", "request_"), ROUTES, ids=lambda value: str(value)[:40])
def test_every_route_with_no_wrong_and_insufficient_tokens(
    guarded: Any, method: str, path: str, scope: str | None, request_: dict[str, Any]
) -> None:
    def ask(authorization: str | None) -> Any:
        headers = {} if authorization is None else {"Authorization": authorization}
        return guarded.request(method, path, headers=headers, **request_)

    right, other = (WRITER, READER) if scope == "write" else (READER, WRITER)
    if scope is None:
        assert ask(None).status_code == 200
        return
    for wrong in (None, "", "Bearer", f"Bearer {right}x", f"Bearer {right[:-1]}", f"Basic {right}", right):
        answer = ask(wrong)
        problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert right not in answer.text
    problem(ask(f"Bearer {other}"), 403, "forbidden")
    assert ask(f"bearer {right}").status_code in (200, 404)


@pytest.mark.parametrize("end", ["%0A", "%0D", "%00", "%C2%85"])
def test_a_path_with_a_control_character_reaches_no_route(guarded: Any, end: str) -> None:
    """`$` of a route's pattern is also true before a last newline, where a scope would be of another path."""
    for token in (READER, WRITER):
        headers = {"Authorization": f"Bearer {token}"}
        document = {"documents": [{"id": "evil", "text": "b"}]}
        problem(guarded.post(f"/v1/documents{end}", json=document, headers=headers), 404, "not-found")
        problem(guarded.delete(f"/v1/documents{end}?filter=*", headers=headers), 404, "not-found")
        problem(guarded.delete(f"/v1/documents/boat{end}", headers=headers), 404, "not-found")
        problem(guarded.get(f"/healthz{end}"), 404, "not-found")
    assert guarded.get("/v1/documents/boat", headers={"Authorization": f"Bearer {READER}"}).status_code == 200


def test_the_list_above_has_every_route(tmp_path: Path) -> None:
    document = routes_of(demo_service(tmp_path)).openapi()
    served = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    listed = {
        (method, path.replace("/boat", "/{id}").replace("/a", "/{id}") if "documents/" in path else path)
        for method, path, *_ in ROUTES
    }
    assert served <= listed


def test_what_is_not_known_to_be_open_needs_a_token() -> None:
    assert needed_scope("GET", "/v2/anything") == "read"
    assert needed_scope("PATCH", "/v1/documents/x") == "write"
    for path in ("/v1/documents\n", "/v2/documents", "/", "/healthz", "/page/x", "/v1/search\n"):
        assert needed_scope("POST", path) == needed_scope("DELETE", path) == "write"
    assert needed_scope("DELETE", "/v1/search") == "write"
    assert needed_scope("GET", "/page/../v1/indexes") is None  # no file of that name: 404


@pytest.mark.parametrize(
    "text", ["abc", "read:short", "admin:0123456789abcdef0", "read:0123456789abcde\u00e9f", "read:"]
)
def test_tokens_that_cannot_be_used_are_refused_without_being_shown(text: str) -> None:
    with pytest.raises(TokenError) as raised:
        parse_token(text)
    assert not text.partition(":")[2] or text.partition(":")[2] not in str(raised.value)


def test_a_token_can_have_both_scopes() -> None:
    assert Tokens([parse_token(f"read,write:{READER}")]).scopes(f"Bearer {READER}") == {"read", "write"}
    assert Tokens([parse_token(f"read:{READER}")]).scopes(f"Bearer {READER}\u00e9") is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org"])
def test_without_a_token_only_this_machine_may_come_in(host: str) -> None:
    with pytest.raises(run.BindError, match="without a token"):
        run.check_address(host, tokens=False)
    run.check_address(host, tokens=True)
    run.check_address("127.0.0.1", tokens=False)


def test_without_tokens_a_name_of_others_is_refused(tmp_path: Path) -> None:
    with client_of(demo_service(tmp_path, loopback_only=True)) as client:
        assert client.get("/v1/indexes").status_code == 200
        assert client.get("/v1/indexes", headers={"Host": "localhost:1"}).status_code == 200
        problem(client.get("/v1/indexes", headers={"Host": "evil.example"}), 400, "wrong-host")


def test_a_form_of_another_site_changes_nothing(limited: Any) -> None:
    """A browser sends text/plain anywhere without asking; JSON needs a permission that is never given."""
    for route, body in (("/v1/documents", {"documents": [{"id": "x", "text": "y"}]}), ("/v1/search", {"query": "x"})):
        answer = limited.post(route, content=json.dumps(body), headers={"Content-Type": "text/plain"})
        assert answer.status_code in (415, 422)
    answer = limited.options("/v1/search", headers={"Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("path", "body", "limit"),
    [
        ("/v1/search", {"query": "x", "k": 21}, "k"),
        ("/v1/search", {"query": "x", "k": 10, "offset": 11}, "k"),
        ("/v1/search", {"query": "x", "facets": {"of": 21}}, "k"),
        ("/v1/search", {"query": "x", "passages": 4}, "passages"),
        ("/v1/search", {"query": "x", "k": 2, "passages": 4, "neighbours": 2}, "passages"),
        ("/v1/search", {"query": "x" * 101}, "text"),
        ("/v1/search", {"query": "x", "filter": "year = 1 or " * 17 + "year = 1"}, "filter"),
        ("/v1/search", {"query": "x", "filter": "not not not not year = 1"}, "filter_depth"),
        (
            "/v1/search",
            {"query": "x", "filter": {"not": {"not": {"not": {"not": {"label": "sport"}}}}}},
            "filter_depth",
        ),
        ("/v1/search", {"query": "x", "filter": {"not": {"and": ["year = 1 or " * 17 + "year = 1"]}}}, "filter"),
        ("/v1/search", {"query": "x", "filter": {"not": {"and": ["not not not year = 1"]}}}, "filter_depth"),
        ("/v1/search", {"query": "x", "filter": {"path": "title", "op": "=", "value": "x" * 200}}, "filter"),
        ("/v1/search", {"query": "x", "filter": {"id": ["a"] * 100}}, "filter"),
        ("/v1/search", {"query": "x", "filter": {"path": "year", "op": "in", "values": [1] * 200}}, "filter"),
        ("/v1/search", {"query": "x", "filter": {"x" * 200: 1}}, "filter"),
        ("/v1/similar", {"ids": ["boat"], "filter": {"id": ["a"] * 100}}, "filter"),
        ("/v1/facets", {"of": 5, "filter": {"id": ["a"] * 100}}, "filter"),
        ("/v1/search/batch", {"searches": [{"query": "x", "filter": f"a = {'x' * 150}{n}"} for n in "12"]}, "filters"),
        ("/v1/search/batch", {"searches": [{"query": "x"}] * 4}, "batch"),
        ("/v1/similar", {"ids": ["a", "b", "c", "d"]}, "batch"),
        ("/v1/similar", {"texts": ["x" * 101]}, "text"),
        ("/v1/facets", {"names": ["label"] * 4}, "batch"),
        ("/v1/facets", {"top": 21}, "k"),
        ("/v1/tag", {"text": "x" * 101}, "text"),
        ("/v1/embeddings", {"model": "demo", "input": ["x"] * 4}, "batch"),
        ("/v1/embeddings", {"model": "demo", "input": "x" * 101}, "text"),
        ("/v1/documents", {"documents": [{"id": "x", "text": "y"}] * 4}, "batch"),
        ("/v1/documents", {"documents": [{"id": "x", "text": "y" * 101}]}, "text"),
    ],
)
def test_limits_are_named(limited: Any, path: str, body: dict[str, Any], limit: str) -> None:
    content = problem(limited.post(path, json=body), 422, "limit-exceeded")
    assert (content["limit"], content["maximum"]) == (limit, LIMITS[limit])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/search", {"query": "boat"}),
        ("/v1/search", {"query": "boat", "mode": "keyword", "explain": True}),
        ("/v1/similar", {"ids": ["boat"]}),
        ("/v1/facets", {"names": ["year", "label", "entity:PER", "tags"]}),
    ],
)
def test_an_answer_is_refused_by_its_length(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    with client_of(demo_service(tmp_path, limits={"answer": 200})) as client:
        content = problem(client.post(path, json=body), 422, "limit-exceeded")
        assert (content["limit"], content["maximum"]) == ("answer", 200)


def test_answers_of_a_batch_are_refused_by_their_length_together(tmp_path: Path) -> None:
    search = {"query": "boat", "k": 5}
    with client_of(demo_service(tmp_path, limits={"answer": 1_500})) as client:
        assert 750 < len(client.post("/v1/search", json=search).content) < 1_500
        answer = client.post("/v1/search/batch", json={"searches": [search] * 3})
        content = problem(answer, 422, "limit-exceeded")
        assert (content["limit"], content["maximum"], content["search"]) == ("answer", 1_500, 1)


def test_a_body_is_refused_by_its_length_and_while_it_comes(limited: Any) -> None:
    assert problem(limited.post("/v1/search", content=b"x" * 4_001), 413, "limit-exceeded")["limit"] == "body"
    pieces = (b"x" * 500 for _ in range(9))
    assert problem(limited.post("/v1/search", content=pieces), 413, "limit-exceeded")["limit"] == "body"
    stream = {"Content-Type": "application/x-ndjson"}
    assert problem(limited.post("/v1/documents", content=b"x" * 5_000, headers=stream), 413, "limit-exceeded")


def test_a_client_that_is_still_sending_sees_why_it_is_refused(limited: Any, guarded: Any) -> None:
    for _ in range(5):
        answer = limited.post("/v1/search", content=(b"x" * 100_000 for _ in range(20)))
        assert problem(answer, 413, "limit-exceeded")
        assert problem(guarded.post("/v1/search", content=(b"x" * 100_000 for _ in range(20))), 401, "unauthorized")


def test_defaults_keep_to_a_small_limit(tmp_path: Path) -> None:
    """What a request does not name is no reason to refuse it."""
    folder = str(save_cross_encoder(tmp_path / "cross"))
    with client_of(demo_service(tmp_path, limits={"k": 2}, reranker=folder)) as client:

        def hits(path: str, **body: Any) -> int:
            return len(client.post(path, json=body).raise_for_status().json()["hits"])

        assert hits("/v1/search", query="boat", rerank=True) == 2
        assert hits("/v1/search", query="boat", offset=1) == 1
        assert hits("/v1/similar", ids=["boat"]) == 2
        assert client.post("/v1/facets", json={"query": "boat"}).json()["documents"] == 2
        answer = client.post("/v1/search", json={"query": "boat", "facets": {"names": ["year"]}}).json()
        assert (len(answer["hits"]), answer["facets"]["documents"]) == (2, 2)
        answer = client.post("/v1/search/batch", json={"searches": [{"query": "boat"}]}).json()
        assert len(answer["answers"][0]["hits"]) == 2
        for named in ({"k": 3}, {"offset": 2}, {"facets": {"of": 3}}, {"facets": {"top": 3}}):
            answer = client.post("/v1/search", json={"query": "boat", **named})
            assert problem(answer, 422, "limit-exceeded")["limit"] == "k"


def test_limits_must_be_above_0() -> None:
    with pytest.raises(TagdexError, match="'k' must be above 0"):
        Limits(k=0)


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"{", 400), (b"", 422), (b"[" * 3_000, 400), (b"\xff", 400),
     (b'{"query": ' + b"9" * 3_900 + b"}", 422), (b"[]", 422),
     (b'{"query": "x", "k": "10"}', 422), (b'{"query": "x", "min_score": NaN}', 422),
     (b'{"query": "x", "more": 1}', 422),
     (b'{"query": "x", "vector": [1]}', 422), (b'{"query": "\\ud800"}', 422), (b'{"vector": [0, 0]}', 422),
     (b'{"vector": [1e300]}', 422), (b'{"query": "x", "filter": {"path": "\\ud800", "op": "exists"}}', 422)],
)  # fmt: skip
def test_what_is_no_request_is_refused(limited: Any, content: bytes, status: int) -> None:
    answer = limited.post("/v1/search", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("path", "content", "name"),
    [("/v1/search", '{"query": "x", "k": 1, "\\u006b": 2}', "k"),
     ("/v1/search", '{"query": "x", "filter": {"path": "year", "op": "=", "value": 1, "value": 2}}', "value"),
     ("/v1/search/batch", '{"searches": [{"query": "x", "query": "y"}]}', "query"),
     ("/v1/similar", '{"ids": ["a"], "ids": ["b"]}', "ids"),
     ("/v1/facets", '{"names": [], "names": ["label"]}', "names"),
     ("/v1/tag", '{"text": "x", "text": "y"}', "text"),
     ("/v1/embeddings", '{"model": "demo", "input": "x", "input": "y"}', "input"),
     ("/v1/documents", '{"documents": [{"id": "a", "text": "x", "metadata": {"n": 1, "n": 2}}]}', "n")],
)  # fmt: skip
def test_two_members_of_one_name_are_refused(limited: Any, path: str, content: str, name: str) -> None:
    answer = limited.post(path, content=content, headers={"Content-Type": "application/json"})
    detail = f'two fields of one object are named "{name}": rename one, or leave it out'
    kind = "invalid-document" if path == "/v1/documents" else "invalid-request"
    assert problem(answer, 422, kind)["detail"] == detail
    assert ("error" in answer.json()) == (path == "/v1/embeddings")


def test_a_line_of_a_stream_with_two_members_of_one_name_is_refused(limited: Any) -> None:
    lines = '{"id": "a", "text": "x"}\n{"id": "b", "text": "x", "text": "y"}'
    answer = limited.post("/v1/documents", content=lines, headers={"Content-Type": "application/x-ndjson"})
    content = problem(answer, 422, "invalid-document")
    assert content["detail"] == 'line 2: two fields of one object are named "text": rename one, or leave it out'
    assert content["written"]["added"] == 0


def test_a_filter_with_two_members_of_one_name_removes_nothing(limited: Any) -> None:
    tree = '{"path": "year", "op": ">", "value": 3000, "op": "<"}'
    answer = limited.delete("/v1/documents", params={"filter": tree})
    assert problem(answer, 422, "invalid-filter")["detail"].startswith(
        'the filter: two fields of one object are named "op"'
    )


@pytest.mark.parametrize(
    "path",
    ["/v1/documents/..%2f..%2fetc%2fpasswd", "/page/..%2fservice.py", "/page/../app.py", "/page/index.html%00.js",
     "/page//etc/passwd", "/v1/nothing", "/v1/documents/", "/page/", "/v1/documents/%ff%fe"],
)  # fmt: skip
def test_tricks_in_paths_find_nothing(limited: Any, path: str) -> None:
    answer = limited.get(path)
    assert answer.status_code in (404, 405, 422)
    assert answer.headers["content-type"] == "application/problem+json"
    assert "Traceback" not in answer.text


def test_every_answer_has_the_headers_that_keep_a_browser_strict(limited: Any) -> None:
    for path in ("/", "/docs", "/page/app.js", "/v1/indexes", "/nothing"):
        headers = limited.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_a_request_keeps_the_id_that_it_brings(limited: Any) -> None:
    assert limited.get("/healthz", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    for wrong in ("a b", "x" * 65, 'a"b'):
        assert len(limited.get("/healthz", headers={"X-Request-ID": wrong}).headers["x-request-id"]) == 32


def test_read_only(tmp_path: Path) -> None:
    with client_of(demo_service(tmp_path, read_only=True)) as client:
        problem(client.post("/v1/documents", json={"documents": [{"id": "a", "text": "b"}]}), 403, "read-only")
        problem(client.delete("/v1/documents/boat"), 403, "read-only")
        problem(client.delete("/v1/documents", params={"filter": "year = 2019"}), 403, "read-only")


class Held:
    """Holds up the threads that search until it is let go."""

    def __init__(self, service: Any) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.service = service
        searcher = service.indexes["demo"].searcher
        self.searching = searcher.facets

        def facets(*args: Any, **options: Any) -> Any:
            self.begun.set()
            self.go.wait(30)
            return self.searching(*args, **options)

        searcher.facets = facets


def until(condition: Any, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come about"
        time.sleep(0.01)


def facets_request(url: str) -> bytes:
    host = url.removeprefix("http://")
    head = f"POST /v1/facets HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: 2"
    return f"{head}\r\n\r\n{{}}".encode()


def test_beyond_the_requests_under_way_it_says_when_to_come_again(tmp_path: Path) -> None:
    service = demo_service(tmp_path, limits={"requests": 3}, workers=1)
    held = Held(service)
    with listening(service) as url:
        waiting = [raw(url, facets_request(url)) for _ in range(3)]
        until(lambda: service.under_way == 3)
        answer = httpx.post(f"{url}/v1/facets", json={})
        assert problem(answer, 429, "too-many-requests")["limit"] == "requests"
        assert answer.headers["retry-after"] == "1"
        assert httpx.get(f"{url}/healthz").status_code == 200
        held.go.set()
        assert all(b"200 OK" in connection.recv(100) for connection in waiting)
        until(lambda: service.under_way == 0)
        assert httpx.post(f"{url}/v1/facets", json={}).status_code == 200
        for connection in waiting:
            connection.close()


def test_closed_connections_free_their_slots(tmp_path: Path) -> None:
    service = demo_service(tmp_path, limits={"requests": 3}, workers=1)
    held = Held(service)
    with listening(service) as url:
        waiting = [raw(url, facets_request(url)) for _ in range(3)]
        # A call that its thread has not taken up yet would be forgotten like those that wait.
        until(lambda: service.under_way == 3 and service.searching.busy == 1 and held.begun.is_set())
        for connection in waiting:
            connection.close()
        until(lambda: service.under_way == 0)
        assert service.searching.busy == 1  # the one that has begun cannot be stopped, and keeps its thread
        held.go.set()
        assert httpx.post(f"{url}/v1/facets", json={}).status_code == 200
        until(lambda: service.searching.busy == 0)


def test_an_answer_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    service = demo_service(tmp_path, limits={"seconds": 0.3})
    held = Held(service)
    with client_of(service) as client:
        content = problem(client.post("/v1/facets", json={}), 503, "timeout")
        assert content["limit"] == "seconds"
        held.go.set()
        assert client.get("/v1/documents/boat").status_code == 200


def test_a_request_that_a_stop_cuts_off_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run, "GRACE", 0.2)
    service = demo_service(tmp_path)
    held = Held(service)
    with listening(service) as url:
        connection = raw(url, facets_request(url))
        assert held.begun.wait(10)
    with connection:
        head, _, body = until_closed(connection).partition(b"\r\n\r\n")
    held.go.set()
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nretry-after: 10\r\n" in head
    assert json.loads(body)["type"] == "urn:tagdex:problem:unavailable"
    assert "Exception in ASGI application" not in caplog.text


def test_a_body_that_does_not_come_is_given_up(tmp_path: Path) -> None:
    with listening(demo_service(tmp_path, limits={"seconds": 0.3})) as url:
        head = b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        with raw(url, head) as connection:
            assert b"408" in connection.recv(200)
        stream = head.replace(b"search", b"documents").replace(b"/json", b"/x-ndjson")
        with raw(url, stream) as connection:
            assert b"408" in connection.recv(200)


def test_a_head_that_does_not_come_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "HEAD_SECONDS", 0.3)
    with listening(demo_service(tmp_path)) as url:
        for begun in (b"", b"GET / HTTP/1.1\r\nHost"):
            with raw(url, begun) as connection:
                assert connection.recv(10) == b""


@pytest.mark.parametrize(
    ("status", "path", "token", "kind"),
    [
        (401, "/v1/search", "no token", "application/json"),
        (401, "/v1/documents", "no token", "application/x-ndjson"),
        (403, "/v1/documents", READER, "application/x-ndjson"),
        (404, "/v1/documents%0A", WRITER, "application/json"),
        (404, "/v1/documents?index=none", WRITER, "application/x-ndjson"),
        (422, "/v1/documents", WRITER, "application/x-ndjson"),
        (408, "/v1/search", READER, "application/json"),
    ],
)
def test_an_early_answer_ends_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, path: str, token: str, kind: str
) -> None:
    """More bytes of the body would keep it for ever, past every time that a connection has."""
    monkeypatch.setattr(gate, "PASSED_SECONDS", 0.1)
    tokens = (f"read:{READER}", f"write:{WRITER}")
    with listening(demo_service(tmp_path, tokens=tokens, limits={"seconds": 1})) as url:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: {kind}\r\nContent-Length: 1000\r\n\r\n"
        )
        with raw(url, head.encode() + b"{\n") as connection:
            connection.settimeout(5)
            answer = connection.recv(65_536)
            with suppress(OSError):
                connection.sendall(b" ")
            answer += until_closed(connection)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"\r\nconnection: close\r\n" in answer


MANY = 100
PAGES = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * MANY + b"GET / HTTP/1.1\r\nConnection: close\r\n"
PAGES += b"Host: localhost\r\n\r\n"  # more than the system takes without anybody reading it


def test_a_client_that_does_not_read_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "UNREAD_SECONDS", 0.3)
    with listening(demo_service(tmp_path)) as url, raw(url, PAGES) as connection:
        time.sleep(1.5)
        assert until_closed(connection).count(b"HTTP/1.1 200") < MANY


def test_a_client_that_reads_slowly_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "UNREAD_SECONDS", 1)
    with listening(demo_service(tmp_path)) as url, raw(url, PAGES) as connection:
        received = b""
        while piece := connection.recv(65_536):
            received += piece
            time.sleep(0.02)
    assert received.count(b"HTTP/1.1 200") == MANY + 1


def test_a_body_that_is_refused_is_not_asked_for(guarded: Any) -> None:
    for authorization, status in ((f"Bearer {READER}", b"413"), ("Bearer none", b"401")):
        head = (
            f"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nAuthorization: {authorization}\r\n"
            "Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n"
        )
        with raw(str(guarded.base_url), head.encode()) as connection:
            assert until_closed(connection).startswith(b"HTTP/1.1 " + status)


def test_bodies_held_at_a_time_are_bounded(tmp_path: Path) -> None:
    service = demo_service(tmp_path, limits={"body": 1_000, "memory": 1_500})
    with listening(service) as url:
        head = b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
        with raw(url, head + b"x" * 900), raw(url, head + b"x" * 900) as second:
            assert b"429" in second.recv(200)
        assert httpx.post(f"{url}/v1/search", json={"query": "boat"}).status_code == 200


def test_unforeseen_errors_tell_the_client_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = demo_service(tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"canary-text in {tmp_path}")

    service.indexes["demo"].searcher.facets = fail  # type: ignore[method-assign]
    with client_of(service) as client, caplog.at_level(logging.INFO, logger="tagdex.server"):
        answer = client.post("/v1/facets", json={})
    problem(answer, 500, "internal")
    assert str(tmp_path) not in answer.text
    lines = [log.JsonLines(texts=False).format(record) for record in caplog.records]
    assert any('"type":"RuntimeError"' in line for line in lines)
    assert not any("canary" in line for line in lines)


def test_errors_of_the_index_name_no_path(tmp_path: Path) -> None:
    service = demo_service(tmp_path)
    with client_of(service) as client:
        meta = tmp_path / "demo" / "meta.sqlite"
        with meta.open("r+b") as file:
            file.seek(4_096)
            file.write(b"\xff" * (meta.stat().st_size - 4_096))
        for answer in (
            client.post("/v1/search", json={"query": "boat"}),
            client.post("/v1/documents", json={"documents": [{"id": "a", "text": "b"}]}),
            client.get("/v1/documents/boat"),
        ):
            if answer.status_code != 200:  # pages that SQLite still remembers
                assert answer.headers["content-type"] == "application/problem+json"
            assert str(tmp_path) not in answer.text


def test_no_canary_comes_into_logs_errors_or_metrics(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    canary = "Zanzibarcanary"
    with (
        client_of(demo_service(tmp_path, tokens=(f"read,write:{canary}{READER}",))) as client,
        caplog.at_level(logging.DEBUG, logger="tagdex.server"),
    ):
        client.headers["Authorization"] = f"Bearer {canary}{READER}"
        for method, path, _, request in ROUTES:
            given = json.loads(json.dumps(request).replace("boat", canary).replace("Anna", canary))
            client.request(method, path.replace("boat", canary), **given)
        client.post("/v1/documents", json={"documents": [{"id": canary, "text": canary, "metadata": {canary: canary}}]})
        client.post("/v1/search", json={"query": canary, "filter": f"x = {canary} {canary}"})
        client.get(f"/{canary}?{canary}={canary}", headers={"User-Agent": canary, "X-Request-ID": f"{canary}/x"})
        metrics = client.get("/metrics").text
    lines = [log.JsonLines(texts=False).format(record) for record in caplog.records]
    assert len(lines) > len(ROUTES)
    assert not [line for line in lines if canary in line]
    assert canary not in metrics
    assert {"request_id", "method", "route", "status", "milliseconds"} <= json.loads(lines[0]).keys()


def test_texts_are_logged_where_that_is_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        client_of(demo_service(tmp_path, log_texts=True)) as client,
        caplog.at_level(logging.INFO, logger="tagdex.server"),
    ):
        client.post("/v1/search", json={"query": "a text to see"})
    assert any("a text to see" in log.JsonLines(texts=True).format(record) for record in caplog.records)


def test_random_filters_and_searches_are_answered_or_refused(limited: Any) -> None:
    """2,000 in the long form; requests by OpenAPI's schemas are those of scripts/fuzz_service.py."""
    chosen = random.Random(7)
    words = ["year", "=", ">=", "in", "[", "]", "(", ")", "not", "and", "or", '"', "'", "1", "1e999", "\\", "`",
             "\0", "é", "😀", "ORG:", "entity", "label", "exists", "..", ",", "%", "\u202e", "NaN", "-"]  # fmt: skip
    values: list[Any] = [None, True, 1, -1, 2**63, 1e308, "", "x", "\udfff", [], {}, [[]], {"path": "year"}, "label"]
    for _ in range(2_000 if os.environ.get("TAGDEX_LONG_TESTS") else 100):
        if chosen.random() < 0.5:
            filter: Any = "".join(chosen.choice(words) + chosen.choice(["", " "]) for _ in range(chosen.randint(1, 12)))
        else:
            keys = chosen.sample(
                ["path", "op", "value", "values", "low", "and", "or", "not", "entity", "label", "id"], 3
            )
            filter = {key: chosen.choice(values) for key in keys}
        body = {
            "query": "".join(chosen.choices(words, k=5)),
            "filter": filter,
            "mode": chosen.choice(["cosine", "keyword", "hybrid"]),
        }
        answer = limited.post("/v1/search", content=json.dumps(body), headers={"Content-Type": "application/json"})
        assert answer.status_code in (200, 400, 422), (body, answer.text)
