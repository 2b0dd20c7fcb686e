"""`search serve` as a process of its own: how it starts, what it writes down, and how it ends."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command_line import Run, assert_fails, assert_usage

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
httpx = pytest.importorskip("httpx", reason="httpx is not installed")

from fakes import build_vector_index, check_consistent, clustered
from serving import READER, WRITER

from indexer.api import add_documents
from indexer.records import Document

ROOT = Path(__file__).parent.parent


@dataclass(slots=True)
class Serving:
    """A process that serves, and what it has written to standard error."""

    process: subprocess.Popen[str]
    url: str
    log: list[str]


@contextmanager
def serving(*arguments: object, environment: dict[str, str] | None = None) -> Iterator[Serving]:
    process = subprocess.Popen(
        [sys.executable, "-c", "from search.cli import main; main()", "serve", *map(str, arguments), "--port", "0"],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    started = process.stderr.readline()
    log: list[str] = []
    reader = threading.Thread(target=lambda: log.extend(process.stderr or ()))
    reader.start()
    try:
        assert started.startswith("serving at "), started + "".join(log)
        yield Serving(process, started.split()[-1], log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join()
        process.stderr.close()


@pytest.fixture
def index(tmp_path: Path, model: str) -> Path:
    add_documents(
        tmp_path / "news", [Document("one", "hello there ada"), Document("two", "london met paris")], model=model
    )
    return tmp_path / "news"


def test_from_start_to_stop(index: Path) -> None:
    """Answers with tokens, sees commits of another process, ends in time with what it acknowledged, logs no text."""
    canary = "Zanzibarcanary"
    tokens = {"SEARCH_SERVE_TOKEN": f"read:{READER} write:{WRITER}"}
    with serving(index, environment=tokens) as served:
        read, write = ({"Authorization": f"Bearer {token}"} for token in (READER, WRITER))
        until_up(f"{served.url}/readyz")
        assert httpx.post(f"{served.url}/v1/search", json={"query": "ada"}).status_code == 401
        body = {"query": "hello there ada", "k": 1}
        assert httpx.post(f"{served.url}/v1/search", json=body, headers=read).json()["hits"][0]["id"] == "one"
        # Another process writes.
        add = "import sys; from indexer.cli import main; sys.argv = ['indexer', 'add', *sys.argv[1:]]; main()"
        line = json.dumps({"id": "late", "text": "acme angstrom zurich"})
        subprocess.run(
            [sys.executable, "-c", add, str(index), "-", "--format", "jsonl"],
            input=line,
            text=True,
            check=True,
            capture_output=True,
        )
        seen = httpx.get(f"{served.url}/v1/documents/late", headers=read)
        assert seen.status_code == 200
        # Writes go on while it is told to stop: what was acknowledged must be there.
        acknowledged: list[str] = []

        def keep_writing() -> None:
            number = 0
            with httpx.Client(base_url=served.url, headers=write, timeout=30) as client:
                while True:
                    document = {"id": f"w{number}", "text": f"hello {canary}", "metadata": {"n": number}}
                    try:
                        answer = client.post("/v1/documents", json={"documents": [document]})
                    except httpx.HTTPError:
                        return
                    if answer.status_code == 200:
                        acknowledged.append(document["id"])  # type: ignore[arg-type]
                    number += 1

        writer = threading.Thread(target=keep_writing)
        writer.start()
        while len(acknowledged) < 3:
            time.sleep(0.01)
        begun = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        code = served.process.wait(timeout=20)
        ended = time.monotonic() - begun
        writer.join()
        assert (code, ended < 10) == (0, True), (code, ended)
    check_consistent(index)
    from search import Searcher

    with Searcher(index) as searcher:
        assert searcher.documents(acknowledged).keys() == set(acknowledged)
    entries = [json.loads(line) for line in served.log]
    assert {entry["route"] for entry in entries if "route" in entry} >= {"/v1/search", "/v1/documents", "/readyz"}
    whole = "".join(served.log)
    for secret in (canary, READER, WRITER, "there ada", '"late"'):  # no hexadecimal, as request ids are
        assert secret not in whole


def test_a_running_request_is_answered_before_the_end(index: Path) -> None:
    with serving(index) as served:
        until_up(f"{served.url}/readyz")
        searches = [{"query": "hello there"}] * 256
        answers: list[Any] = []

        def ask() -> None:
            answers.append(httpx.post(f"{served.url}/v1/search/batch", json={"searches": searches}, timeout=30))

        asking = threading.Thread(target=ask)
        asking.start()
        while "tagdex_requests_under_way 1.0" not in httpx.get(f"{served.url}/metrics").text and not answers:
            pass
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(timeout=20) == 0
        asking.join()
    assert len(answers[0].json()["answers"]) == 256


def test_a_writer_that_cannot_be_closed_when_idle_is_one_line_of_the_log(tmp_path: Path) -> None:
    """On a full disk the vectors that wait for a segment stay where they are, and nothing is lost."""
    vectors = clustered(1_100)
    index = build_vector_index(tmp_path / "index", vectors[:1])
    lines = [json.dumps({"id": f"n{at}", "vector": row.tolist()}) for at, row in enumerate(vectors)]
    with serving(index) as served:
        until_up(f"{served.url}/readyz")
        stream = {"Content-Type": "application/x-ndjson"}
        url = f"{served.url}/v1/documents"
        assert httpx.post(url, content="\n".join(lines), headers=stream, timeout=60).json()["added"] == 1_100
        resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        found = until_logged(served, "an index could not be put in order when idle")
        resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert (found["level"], found["index"], found["error"]["type"]) == ("error", "index", "StorageError")
        assert httpx.post(url, content=lines[0], headers=stream).json()["unchanged"] == 1
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(timeout=20) == 0
    assert [json.loads(line)["logger"] for line in served.log]  # every line is JSON
    check_consistent(index)


def until_logged(served: Serving, message: str) -> dict[str, Any]:
    for _ in range(600):
        for line in list(served.log):
            if message in line:
                content: dict[str, Any] = json.loads(line)
                return content
        time.sleep(0.05)
    pytest.fail(f"nothing in the log about '{message}': {served.log}")


_FORGOTTEN = """
import asyncio, gc
from search.server import log

async def fail():
    raise ValueError("a canary")

async def main():
    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    del task
    gc.collect()

log.set_up(texts=False)
asyncio.run(main())
"""


def test_what_the_event_loop_complains_about_is_a_line_of_the_log_without_texts() -> None:
    ended = subprocess.run([sys.executable, "-c", _FORGOTTEN], cwd=ROOT, capture_output=True, text=True, check=True)
    (line,) = ended.stderr.splitlines()
    content = json.loads(line)
    assert (content["logger"], content["message"]) == ("asyncio", "Task exception was never retrieved")
    assert content["error"]["type"] == "ValueError"
    assert "canary" not in line


def until_up(url: str) -> None:
    for _ in range(600):
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    pytest.fail(f"{url} did not come up")


def test_what_keeps_it_from_starting_is_one_line(run: Run, index: Path, tmp_path: Path) -> None:
    assert_fails(
        run("search", "serve", index, "--host", "0.0.0.0"),
        "without a token only this machine may come in, and 0.0.0.0 is open to others: give one with --token or "
        "--token-file, or leave --host out",
    )
    assert_fails(
        run("search", "serve", tmp_path / "none", "--port", "0"),
        f"{tmp_path / 'none'} is not an index folder: there is no such folder",
    )
    assert_fails(
        run("search", "serve", index, "--token", "read:short"),
        "a token needs at least 16 printable ASCII characters without spaces",
    )
    both = run("search", "serve", index, index, "--port", "0")
    assert (both.code, both.out) == (2, "")
    assert "two indexes are called 'news'" in both.err


def test_a_folder_under_two_names_keeps_it_from_starting(run: Run, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "no-index")
    assert_usage(
        run("search", "serve", tmp_path / "no-index", f"other={tmp_path / 'link'}"),
        "'no-index' and 'other' are one folder, which can only have one writer: name it once",
    )


def test_every_limit_is_the_one_that_its_option_gives(index: Path) -> None:
    options = {"body": 11_000, "stream": 12_000, "batch": 13, "k": 14, "text": 15, "texts": 16, "filter": 17}
    options |= {"filter-depth": 18, "filters": 19, "answer": 20_000, "requests": 21}
    arguments = [part for name, value in options.items() for part in (f"--max-{name}", value)]
    with serving(index, *arguments, "--timeout", 22) as served:
        limits = httpx.get(f"{served.url}/v1/indexes").json()["limits"]
    wanted = {name.replace("-", "_"): value for name, value in options.items()} | {"seconds": 22}
    assert {name: limits[name] for name in wanted} == wanted
    assert limits.keys() - wanted.keys() == {"passages", "streams", "memory"}  # which have no option


@pytest.mark.parametrize("content", ["", "# tokens come here\n\n"])
def test_a_token_file_without_a_token_keeps_it_from_starting(run: Run, tmp_path: Path, content: str) -> None:
    file = tmp_path / "tokens.txt"
    file.write_text(content)
    assert_usage(
        run("search", "serve", tmp_path / "no-index", "--token-file", file),
        f"{file} holds no token: write one on a line of its own, or leave --token-file out",
    )


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_variable_for_tokens_keeps_it_from_starting(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("SEARCH_SERVE_TOKEN", value)
    assert_usage(
        run("search", "serve", tmp_path / "no-index"),
        "SEARCH_SERVE_TOKEN is set, but holds no token: give it one, or unset it to serve without",
    )


def test_an_address_that_is_taken_is_said_so(run: Run, index: Path) -> None:
    from search.server.run import listen

    with listen("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        assert_fails(
            run("search", "serve", index, "--port", port),
            f"cannot listen on 127.0.0.1, port {port}: Address already in use; choose another with --host or --port",
        )
