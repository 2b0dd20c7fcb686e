"""Texts that come together go through the model together, and each gets what it would get alone."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
httpx = pytest.importorskip("httpx", reason="httpx is not installed")

from fakes import DemoAnalyser, as_text_model, build_index
from serving import client_of, documents

from indexer.errors import TagdexError
from indexer.model import TextModel
from indexer.records import Analysis
from search.server.batching import Batcher, Together
from search.server.run import listen
from search.server.service import Service
from search.server.settings import Settings
from search.server.threads import Threads


class Watched(DemoAnalyser):
    """Notes the batches; a text that holds "spoiled" cannot be embedded."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[str]] = []
        self.begun, self.go = threading.Event(), threading.Event()
        self.go.set()

    def analyse(self, texts: Sequence[str], *, tags: bool = True) -> list[Analysis]:
        self.batches.append(list(texts))
        self.begun.set()
        self.go.wait(30)
        if any("spoiled" in text for text in texts):
            raise ValueError("spoiled")
        return super().analyse(texts, tags=tags)


def batcher(
    model: DemoAnalyser, *, size: int = 8, characters: int = 2_000, wait: float = 0.0, under_way: int = 1
) -> Batcher:
    return Batcher(
        model,
        size=size,
        characters=characters,
        wait=wait,
        threads=Threads(1, name="test"),
        under_way=lambda: under_way,
        on_batch=lambda _: None,
    )


def test_what_comes_while_the_model_is_busy_is_the_next_batch() -> None:
    model = Watched()

    async def run() -> list[list[Analysis]]:
        model.go.clear()
        way = batcher(model)
        first = asyncio.create_task(way.analyse(["first"]))
        await asyncio.to_thread(model.begun.wait, 30)
        others = [asyncio.create_task(way.analyse([f"text {number}"])) for number in range(10)]
        await asyncio.sleep(0.05)
        model.go.set()
        return list(await asyncio.gather(first, *others))

    results = asyncio.run(run())
    assert [len(batch) for batch in model.batches] == [1, 8, 2]
    for number, (analysis,) in enumerate(results[1:]):
        np.testing.assert_array_equal(analysis.pooled, DemoAnalyser().vector(f"text {number}"))


def test_a_text_that_comes_alone_waits_for_nobody() -> None:
    async def run() -> float:
        way = batcher(Watched(), wait=30.0)
        loop = asyncio.get_running_loop()
        started = loop.time()
        await way.analyse(["alone"])
        return loop.time() - started

    assert asyncio.run(run()) < 10


def test_with_others_under_way_a_text_waits_for_them_but_not_for_long() -> None:
    model = Watched()

    async def run() -> None:
        way = batcher(model, wait=30.0, under_way=2)
        first = asyncio.create_task(way.analyse(["one"]))
        await asyncio.sleep(0.02)
        await asyncio.gather(first, way.analyse(["two"]))
        await batcher(model, wait=0.01, under_way=2).analyse(["three"])

    asyncio.run(run())
    assert model.batches == [["one", "two"], ["three"]]


def test_one_text_does_not_spoil_the_others() -> None:
    model = Watched()

    async def run() -> list[Any]:
        way = batcher(model, wait=30.0, under_way=3)
        return list(
            await asyncio.gather(*(way.analyse([text]) for text in ("a", "spoiled", "b")), return_exceptions=True)
        )

    first, second, third = asyncio.run(run())
    assert isinstance(second, ValueError)
    np.testing.assert_array_equal(first[0].pooled, DemoAnalyser().vector("a"))
    np.testing.assert_array_equal(third[0].pooled, DemoAnalyser().vector("b"))


def test_a_request_that_has_gone_takes_no_place_in_a_batch() -> None:
    model = Watched()

    async def run() -> None:
        model.go.clear()
        way = batcher(model)
        first = asyncio.create_task(way.analyse(["first"]))
        await asyncio.to_thread(model.begun.wait, 30)
        gone, stays = (asyncio.create_task(way.analyse([text])) for text in ("gone", "stays"))
        await asyncio.sleep(0.02)
        gone.cancel()
        await asyncio.sleep(0.02)
        model.go.set()
        await asyncio.gather(first, stays)

    asyncio.run(run())
    assert model.batches == [["first"], ["stays"]]


def test_a_batch_ends_at_a_number_of_characters_and_takes_the_requests_in_turns() -> None:
    """Many texts of one request do not keep a single one of another waiting until all of them are through."""
    model = Watched()

    async def run() -> None:
        model.go.clear()
        way = batcher(model, characters=100)
        first = asyncio.create_task(way.analyse(["first"]))
        await asyncio.to_thread(model.begun.wait, 30)
        many = asyncio.create_task(way.analyse([f"{number} {'x' * 38}" for number in range(5)]))
        await asyncio.sleep(0.02)
        one = asyncio.create_task(way.analyse(["one"]))
        await asyncio.sleep(0.02)
        model.go.set()
        await asyncio.gather(first, many, one)

    asyncio.run(run())
    assert [[text[:3].strip() for text in batch] for batch in model.batches] == [
        ["fir"],
        ["0 x", "one", "1 x"],
        ["2 x", "3 x"],
        ["4 x"],
    ]


class Stepping(Watched):
    """Notes the steps of long texts as well; `stop` holds them up."""

    def __init__(self) -> None:
        super().__init__()
        self.stop, self.stopped = threading.Event(), threading.Event()
        self.stop.set()

    def analyse_in_steps(self, texts: Sequence[str], *, tags: bool = True) -> Iterator[list[Analysis] | None]:
        for found in super().analyse_in_steps(texts, tags=tags):
            self.batches.append([f"step of {texts[0][:4]}"])
            self.stopped.set()
            self.stop.wait(30)
            yield found


@pytest.mark.parametrize("goes", [False, True])
def test_a_long_text_gives_way_to_others_and_is_cut_off_when_its_request_goes(goes: bool) -> None:
    model = Stepping()
    texts = ["long " * 1_000, "more " * 1_000]

    async def run() -> None:
        way = batcher(model)
        model.stop.clear()
        request = asyncio.create_task(way.analyse(texts))
        await asyncio.to_thread(model.stopped.wait, 30)
        others = [asyncio.create_task(way.analyse([text])) for text in ("one", "two")]
        await asyncio.sleep(0.02)
        if goes:
            request.cancel()
            await asyncio.sleep(0.02)
        model.stop.set()
        await asyncio.gather(*others)
        if not goes:
            for text, analysis in zip(texts, await request, strict=True):
                np.testing.assert_array_equal(analysis.pooled, model.vector(text))

    asyncio.run(run())
    assert model.batches[:2] == [["step of long"], ["one", "two"]]
    if goes:
        assert model.batches[2:] == []
    else:  # five steps each, and one with what the demo computes
        steps = [["step of long"]], [["step of more"]]
        assert model.batches[2:] == [*steps[0] * 4, [texts[0]], *steps[0], *steps[1] * 5, [texts[1]], *steps[1]]


def test_long_texts_of_several_requests_are_taken_in_turns() -> None:
    model = Stepping()

    async def run() -> None:
        way = batcher(model)
        await asyncio.gather(
            way.analyse([name * 600 for name in ("a b ", "c d ")]), way.analyse([name * 600 for name in ("e f ",)])
        )

    asyncio.run(run())
    steps = [batch[0][8:] for batch in model.batches if batch[0].startswith("step")]
    assert list(dict.fromkeys(steps)) == ["a b ", "e f ", "c d "]


class Panicking(DemoAnalyser):
    """As the tokenizers library ends a thread: by what is no `Exception`."""

    class PanicException(BaseException):
        pass

    def analyse(self, texts: Sequence[str], *, tags: bool = True) -> list[Analysis]:
        if any("13" in text for text in texts):
            raise self.PanicException("unlucky")
        return super().analyse(texts, tags=tags)


@pytest.mark.parametrize("size", [1, 8])
@pytest.mark.parametrize("text", ["13", "13 " * 1_000])
def test_a_panic_in_the_model_reaches_who_asked(size: int, text: str) -> None:
    async def run() -> list[Any]:
        way = batcher(Panicking(), size=size, under_way=3, wait=0.05)
        asked = asyncio.gather(*(way.analyse([one]) for one in ("a", text, "b")), return_exceptions=True)
        return list(await asyncio.wait_for(asked, 20))

    one, panic, two = asyncio.run(run())
    assert (len(one), len(two)) == (1, 1)
    assert isinstance(panic, RuntimeError)
    assert str(panic) == "PanicException"


def test_texts_with_and_without_tags_are_kept_apart() -> None:
    model = Watched()

    async def run() -> None:
        way = batcher(model, wait=0.01, under_way=3)
        tagged, plain, again = await asyncio.gather(
            way.analyse(["Anna"], tags=True), way.analyse(["Anna"]), way.analyse(["Anna"], tags=True)
        )
        assert [len(analysis[0].spans) for analysis in (tagged, plain, again)] == [1, 0, 1]

    asyncio.run(run())


@pytest.mark.parametrize("size", [1, 16])
def test_many_searches_at_once_are_answered_as_one_by_one(tmp_path: Path, model: str, size: int) -> None:
    """With a real model, whose batches are padded."""
    loaded = TextModel.load(model)
    index = build_index(tmp_path / "index", documents(), loaded)  # type: ignore[arg-type]
    service = Service({"index": index}, settings=Settings(batch_texts=size, batch_wait=0.01), model=loaded)
    texts = [" ".join(["hello", "there", "ada", "met", "london"][: 1 + number % 5]) for number in range(24)]

    def ask(client: Any, text: str) -> list[tuple[str, float]]:
        hits = client.post("/v1/search", json={"query": text}).json()["hits"]
        return [(hit["id"], hit["score"]) for hit in hits]

    with client_of(service) as client:
        with ThreadPoolExecutor(12) as pool:
            together = list(pool.map(lambda text: ask(client, text), texts))
        alone = [service.indexes["index"].searcher.search(text) for text in texts]
        page = client.get("/metrics").text
    for got, expected in zip(together, alone, strict=True):
        assert [id_ for id_, _ in got] == [hit.id for hit in expected]
        assert [score for _, score in got] == pytest.approx([hit.score for hit in expected], abs=1e-4)
    if size > 1:
        (sum_line,) = (line for line in page.splitlines() if line.startswith("tagdex_model_batch_texts_count"))
        assert float(sum_line.split()[1]) < len(texts)


# Searches


class Asked:
    """Answers numbers by their squares, in batches that it notes; "spoiled" cannot be answered."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.begun, self.go = threading.Semaphore(0), threading.Event()

    def __call__(self, questions: Sequence[Any]) -> list[int]:
        self.batches.append(list(questions))
        self.begun.release()
        self.go.wait(30)
        return [question**2 for question in questions]


def test_what_comes_while_all_threads_are_busy_is_shared_out_among_them() -> None:
    asked = Asked()

    async def run() -> list[int]:
        way = Together(asked, size=6, threads=Threads(2, name="test"))
        tasks = [asyncio.create_task(way.answer(number)) for number in range(2)]
        for _ in range(2):
            await asyncio.to_thread(asked.begun.acquire)
        tasks += [asyncio.create_task(way.answer(number)) for number in range(2, 21)]
        await asyncio.sleep(0.05)
        asked.go.set()
        return list(await asyncio.gather(*tasks))

    assert asyncio.run(run()) == [number**2 for number in range(21)]
    assert sorted(map(len, asked.batches))[:2] == [1, 1]
    assert max(map(len, asked.batches)) == 6
    assert sorted(number for batch in asked.batches for number in batch) == list(range(21))


def test_one_question_does_not_spoil_the_others_and_gone_ones_are_not_asked() -> None:
    asked = Asked()

    async def run() -> list[Any]:
        way = Together(asked, size=8, threads=Threads(1, name="test"))
        first = asyncio.create_task(way.answer(1))
        await asyncio.to_thread(asked.begun.acquire)
        tasks = [asyncio.create_task(way.answer(question)) for question in (2, "spoiled", 3, 4)]
        await asyncio.sleep(0.02)
        tasks.pop().cancel()
        await asyncio.sleep(0.02)
        asked.go.set()
        found = list(await asyncio.gather(first, *tasks, return_exceptions=True))
        return [*found, await way.answer(5)]

    one, two, spoiled, three, five = asyncio.run(run())
    assert (one, two, three, five) == (1, 4, 9, 25)
    assert isinstance(spoiled, TypeError)
    assert asked.batches == [[1], [2, "spoiled", 3], [2], ["spoiled"], [3], [5]]


@pytest.mark.parametrize(("threads", "clients"), [(1, 1), (1, 2), (2, 2), (2, 5)])
def test_no_question_is_forgotten(threads: int, clients: int) -> None:
    """Whoever asks at the very moment when a thread has found nothing more to do is answered, too."""

    async def client(way: Together[int, int], number: int) -> None:
        for step in range(300):
            assert await asyncio.wait_for(way.answer(number + step), 20) == number + step
            for _ in range(step % 4):
                await asyncio.sleep(0)

    async def run() -> None:
        way: Together[int, int] = Together(list, size=4, threads=Threads(threads, name="test"))
        await asyncio.gather(*(client(way, 1_000 * number) for number in range(clients)))

    asyncio.run(run())


def test_a_panic_or_an_end_of_the_threads_reaches_who_asked() -> None:
    class PanicException(BaseException):
        pass

    def answer_all(questions: Sequence[int]) -> list[int]:
        if 13 in questions:
            raise PanicException("unlucky")
        return list(questions)

    async def run() -> list[Any]:
        threads = Threads(1, name="test")
        threads.start()
        way: Together[int, int] = Together(answer_all, size=4, threads=threads)
        found = await asyncio.wait_for(asyncio.gather(*map(way.answer, (1, 13, 2)), return_exceptions=True), 20)
        threads.close()
        return [*found, *await asyncio.wait_for(asyncio.gather(way.answer(3), return_exceptions=True), 20)]

    one, panic, two, closed = asyncio.run(run())
    assert (one, two) == (1, 2)
    assert isinstance(panic, RuntimeError)
    assert str(panic) == "PanicException"
    assert isinstance(closed, RuntimeError)


def test_searches_that_come_together_get_what_each_gets_alone(tmp_path: Path) -> None:
    index = build_index(tmp_path / "index", documents(), DemoAnalyser())
    bodies = [
        {"query": text, "k": k, **more}
        for text in ("a ball", "the boat", "Anna sings", "Nordal counts")
        for k in (1, 3)
        for more in ({}, {"filter": "year >= 2021"}, {"mode": "hybrid"}, {"facets": {"top": 2}}, {"filter": "nope"})
    ]
    answers = []
    for size in (1, 32):
        service = Service({"demo": index}, settings=Settings(batch_texts=size), model=as_text_model(DemoAnalyser()))
        with client_of(service) as client, ThreadPoolExecutor(20) as threads:
            found = list(threads.map(lambda body: client.post("/v1/search", json=body), bodies))
            answers.append([(one.status_code, {**one.json(), "request_id": None}) for one in found])
    assert answers[0] == answers[1]
    assert {status for status, _ in answers[0]} == {200, 422}


def test_answers_are_not_held_back_for_the_clients_acknowledgement() -> None:
    """Nagle's algorithm would keep the body of an answer for 40 ms behind its head."""

    async def run() -> int:
        accepted = asyncio.get_running_loop().create_future()
        with listen("127.0.0.1", 0) as listener:
            server = await asyncio.start_server(lambda _, writer: accepted.set_result(writer), sock=listener)
            _, writer = await asyncio.open_connection(*listener.getsockname())
            of_server = await accepted
            without = int(of_server.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            for one in (writer, of_server):
                one.close()
                await one.wait_closed()
            server.close()
            return without

    assert asyncio.run(run()) == 1


def test_too_few_threads_are_an_error_and_not_a_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    start, left = threading.Thread.start, [2]

    def scarce(self: threading.Thread) -> None:
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(self)

    async def run() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", scarce)
            with pytest.raises(TagdexError, match=r"too few threads \(can't start new thread\): raise its limit"):
                Threads(4, name="test").start()

    asyncio.run(run())
