"""What each route of the service answers, against the Python call that it stands for."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
httpx = pytest.importorskip("httpx", reason="httpx is not installed")

from cross_encoders import save_cross_encoder
from fakes import (
    DemoAnalyser,
    as_text_model,
    build_index,
    build_vector_index,
    check_consistent,
    clustered,
    entries,
)
from serving import client_of, demo_service, documents, problem

from indexer.api import add_documents
from indexer.errors import ModelError
from indexer.lock import WriterLock
from indexer.records import Analysis, Document
from indexer.store import LOCK, IndexWriter
from search import Searcher
from search.query import Query
from search.server.service import Service
from search.server.settings import Settings
from search.similar import Examples


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    return demo_service(tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[Any]:
    with client_of(service) as client:
        yield client


@pytest.fixture
def writable(tmp_path: Path) -> Iterator[Any]:
    with client_of(demo_service(tmp_path)) as client:
        yield client


def hits_json(searcher: Searcher, text: str, **options: Any) -> list[dict[str, Any]]:
    return [hit.to_json() for hit in searcher.answer(text, Query(**options)).hits]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 2, "offset": 1},
        {"min_score": 0.1},
        {"mode": "keyword"},
        {"mode": "hybrid"},
        {"mode": "hybrid", "fusion": "rrf"},
        {"distinct": 0.9},
        {"mmr": 0.5},
        {"entities": "boost", "boost": 0.2},
        {"passages": 1, "neighbours": 1, "highlight": True},
    ],
)
def test_search_answers_as_the_searcher_does(client: Any, service: Service, options: dict[str, Any]) -> None:
    answer = client.post("/v1/search", json={"query": "an electric boat to Varberg", **options})
    assert answer.status_code == 200
    assert answer.json() == {
        "index": "demo",
        "hits": hits_json(service.indexes["demo"].searcher, "an electric boat to Varberg", **options),
    }
    assert answer.json()["hits"]


@pytest.mark.parametrize("options", [{}, {"mode": "hybrid"}, {"entities": "boost"}])
def test_pages_show_every_hit_once_and_end(client: Any, service: Service, options: dict[str, Any]) -> None:
    text, shown, cursor = "an electric boat to Varberg", [], ""
    while cursor is not None:
        answer = client.post("/v1/search", json={"query": text, "k": 2, "cursor": cursor, **options}).json()
        shown += answer["hits"]
        cursor = answer["cursor"]
    assert shown == hits_json(service.indexes["demo"].searcher, text, **options)
    assert len(shown) == 5


def test_pages_leave_out_what_is_new(writable: Any) -> None:
    first = writable.post("/v1/search", json={"query": "boat", "k": 2, "cursor": ""}).json()
    writable.post("/v1/documents", json={"documents": [{"id": "new", "text": "boat"}]})
    rest = writable.post("/v1/search", json={"query": "boat", "k": 10, "cursor": first["cursor"]}).json()
    ids = [hit["id"] for hit in (*first["hits"], *rest["hits"])]
    assert len(ids) == len(set(ids)) == 5
    assert "new" not in ids


@pytest.mark.parametrize("body", [{"cursor": "x"}, {"cursor": "", "offset": 1}])
def test_a_cursor_that_cannot_be_is_refused(client: Any, body: dict[str, Any]) -> None:
    problem(client.post("/v1/search", json={"query": "boat", **body}), 422, "invalid-query")


def test_hits_are_reranked_by_the_operator_s_cross_encoder(tmp_path: Path) -> None:
    folder = str(save_cross_encoder(tmp_path / "cross"))
    service = demo_service(tmp_path, reranker=folder)
    with client_of(service) as client:
        hits = client.post("/v1/search", json={"query": "boat", "k": 3, "rerank": True, "rerank_top": 5}).json()["hits"]
        assert hits == hits_json(service.indexes["demo"].searcher, "boat", k=3, rerank=folder, rerank_top=5)
        assert [hit["rerank_score"] for hit in hits] == sorted((hit["rerank_score"] for hit in hits), reverse=True)
        body = {"query": "boat", "k": 3, "rerank": True, "rerank_top": 2}
        problem(client.post("/v1/search", json=body), 422, "invalid-query")


def test_without_a_cross_encoder_nothing_is_reranked(client: Any) -> None:
    problem(client.post("/v1/search", json={"query": "boat", "rerank": True}), 422, "invalid-query")


def test_filters_of_a_batch_that_are_equal_count_once(tmp_path: Path) -> None:
    with client_of(demo_service(tmp_path, limits={"filters": 300})) as client:
        long = "year < 2020 and not title = " + "x" * 200
        searches = [{"query": "boat", "filter": filter} for filter in (long, long, "year = 2023", long, {"not": long})]
        answer = client.post("/v1/search/batch", json={"searches": searches[:4]})
        assert [{hit["id"] for hit in one["hits"]} for one in answer.json()["answers"]] == [
            {"steel", "ball"}, {"steel", "ball"}, {"boat", "atom"}, {"steel", "ball"}
        ]  # fmt: skip
        content = problem(client.post("/v1/search/batch", json={"searches": searches}), 422, "limit-exceeded")
        assert (content["limit"], content["search"]) == ("filters", 4)


def test_long_filters_leave_others_their_answers(tmp_path: Path) -> None:
    """They are read in a thread: in the event loop nobody would be answered meanwhile."""
    filters = [" or ".join(["a=1"] * 1_420) + f" or a={number}" for number in range(100, 140)]
    searches = [{"query": "boat", "k": 1, "filter": filter} for filter in filters]
    with client_of(demo_service(tmp_path, limits={"filters": 1_000_000})) as client:
        answers: list[Any] = []
        asking = threading.Thread(
            target=lambda: answers.append(client.post("/v1/search/batch", json={"searches": searches}))
        )
        begun, waited = time.monotonic(), []
        asking.start()
        while asking.is_alive():
            waited.append(client.get("/healthz").elapsed.total_seconds())
        asking.join()
        took = time.monotonic() - begun
    assert answers[0].status_code == 200
    assert max(waited) < took / 3


@pytest.mark.parametrize("mode", ["keyword", "hybrid"])
def test_facets_of_a_mode(client: Any, service: Service, mode: str) -> None:
    answer = client.post("/v1/facets", json={"query": "boat", "mode": mode, "names": ["year"], "of": 2}).json()
    assert answer == service.indexes["demo"].searcher.facets("boat", mode=mode, names=["year"], of=2).to_json()


def test_a_filter_can_be_text_or_json(client: Any) -> None:
    wanted = {"steel", "ball"}
    for filter in (
        "year < 2020",
        {"path": "year", "op": "<", "value": 2020},
        {"not": {"path": "year", "op": ">=", "value": 2020}},
    ):
        hits = client.post("/v1/search", json={"query": "boat", "filter": filter}).json()["hits"]
        assert {hit["id"] for hit in hits} == wanted
    entity = {"entity": {"type": "ORG", "text": "nordal", "match": "exact"}}
    assert [hit["id"] for hit in client.post("/v1/search", json={"query": "x", "filter": entity}).json()["hits"]] == [
        "atom"
    ]


def test_search_by_vector(client: Any) -> None:
    vector = DemoAnalyser().vector("the ball is lost again")
    hits = client.post("/v1/search", json={"vector": vector.tolist(), "k": 1}).json()["hits"]
    assert hits[0]["id"] == "ball"
    assert hits[0]["score"] == pytest.approx(1.0, abs=1e-3)


def test_search_with_facets_and_an_explanation(client: Any, service: Service) -> None:
    body = {"query": "boat", "facets": {"names": ["year"], "of": 3}, "explain": True}
    answer = client.post("/v1/search", json=body).json()
    expected = service.indexes["demo"].searcher.facets("boat", names=["year"], of=3).to_json()
    assert answer["facets"] == expected
    assert answer["explanation"]["documents"] == 5


@pytest.mark.parametrize("mode", ["keyword", "hybrid"])
def test_facets_of_a_search_are_those_of_its_mode(client: Any, service: Service, mode: str) -> None:
    answer = client.post(
        "/v1/search", json={"query": "boat", "mode": mode, "facets": {"names": ["year"], "of": 3}}
    ).json()
    expected = service.indexes["demo"].searcher.facets("boat", names=["year"], of=3, mode=mode).to_json()
    assert answer["facets"] == expected


def test_hits_and_facets_of_a_search_are_of_one_commit(tmp_path: Path) -> None:
    """While a document is there in every second commit only."""
    with client_of(demo_service(tmp_path)) as client:
        stop = threading.Event()

        def write() -> None:
            with IndexWriter(tmp_path / "demo") as writer:
                while not stop.is_set():
                    writer.write(entries([Document("more", "one boat more")], DemoAnalyser()))
                    writer.remove(["more"])

        writing = threading.Thread(target=write)
        writing.start()
        try:
            counts = set()
            for _ in range(200):
                answer = client.post("/v1/search", json={"query": "boat", "facets": {"names": ["year"]}}).json()
                counts.add((len(answer["hits"]), answer["facets"]["documents"], answer["facets"]["indexed"]))
        finally:
            stop.set()
            writing.join()
    assert counts == {(5, 5, 5), (6, 6, 6)}


def test_a_batch_answers_each_search_as_alone(client: Any) -> None:
    searches: list[dict[str, Any]] = [
        {"query": "boat"},
        {"query": "song", "mode": "keyword"},
        {"vector": DemoAnalyser().vector("atom").tolist(), "k": 2},
        {"query": "steel", "filter": "year = 2019"},
        {"query": "Anna and Nordal", "entities": "filter"},
    ]
    answers = client.post("/v1/search/batch", json={"searches": searches}).json()["answers"]
    assert answers == [client.post("/v1/search", json=one).json() for one in searches]


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"query": " "}, "invalid-query"),
        ({"query": "a", "filter": "year >"}, "invalid-filter"),
        ({"query": "a", "filter": {"label": "no such class"}}, "invalid-filter"),
        ({"query": "a", "neighbours": 1}, "invalid-query"),
        ({"vector": [1.0, 2.0]}, "invalid-query"),
        ({"query": "a", "k": 1_001}, "limit-exceeded"),
        ({"query": "a", "filter": "x" * 10_001}, "limit-exceeded"),
    ],
)
def test_what_is_wrong_in_a_batch_is_named(client: Any, wrong: dict[str, Any], kind: str) -> None:
    answer = client.post("/v1/search/batch", json={"searches": [{"query": "a"}, wrong, wrong]})
    assert problem(answer, 422, kind)["search"] == 1


@pytest.mark.parametrize("mode", ["cosine", "keyword", "hybrid"])
def test_no_boost_makes_a_score_infinite(client: Any, mode: str) -> None:
    body = {"query": "Anna and Nordal", "mode": mode, "entities": "boost"}
    hits = client.post("/v1/search", json={**body, "boost": 1_000}).json()["hits"]
    assert all(isinstance(hit["score"], float) for hit in hits)
    problem(client.post("/v1/search", json={**body, "boost": 1e308}), 422, "invalid-request")


@pytest.mark.parametrize("twice", ["filter=year%3D1&filter=*", "filter=*&index=demo&index=demo"])
def test_a_parameter_that_comes_twice_is_refused(client: Any, twice: str) -> None:
    problem(client.delete(f"/v1/documents?{twice}"), 422, "invalid-request")
    assert client.get("/v1/documents/boat").status_code == 200


def test_similar_leaves_the_examples_out(client: Any) -> None:
    hits = client.post("/v1/similar", json={"ids": ["boat"], "texts": ["steel"], "not_ids": ["song"], "k": 9}).json()[
        "hits"
    ]
    assert {hit["id"] for hit in hits} == {"steel", "ball", "atom"}
    problem(client.post("/v1/similar", json={"ids": ["nope"]}), 422, "invalid-query")
    problem(client.post("/v1/similar", json={}), 422, "invalid-query")


def test_example_texts_go_through_the_model_with_those_of_other_requests(client: Any, service: Service) -> None:
    def batches() -> float:
        name = "tagdex_model_batch_texts_sum "
        return float(client.get("/metrics").text.partition("\n" + name)[2].partition("\n")[0])

    before = batches()
    hits = client.post("/v1/similar", json={"texts": ["steel", "boat"], "not_texts": ["song"]}).json()["hits"]
    expected = service.indexes["demo"].searcher.similar(Examples(texts=("steel", "boat"), not_texts=("song",)))
    assert hits == [hit.to_json() for hit in expected]
    assert batches() == before + 3


def test_the_texts_of_one_request_have_a_limit_together(tmp_path: Path) -> None:
    with client_of(demo_service(tmp_path, limits={"texts": 10})) as client:
        for path, body in (
            ("/v1/embeddings", {"model": "demo", "input": ["a boat", "steel"]}),
            ("/v1/similar", {"texts": ["a boat"], "not_texts": ["steel"]}),
            ("/v1/search/batch", {"searches": [{"query": "a boat"}, {"query": "steel"}]}),
        ):
            content = problem(client.post(path, json=body), 422, "limit-exceeded")
            assert (content["limit"], content["maximum"], content["got"]) == ("texts", 10, 11)
        words = [{"query": "a boat", "mode": "keyword"}, {"query": "steel"}]
        assert client.post("/v1/search/batch", json={"searches": words}).status_code == 200


def test_facets_of_a_filter_and_of_a_query(client: Any, service: Service) -> None:
    searcher = service.indexes["demo"].searcher
    answer = client.post("/v1/facets", json={"names": ["label", "entity:PER"], "filter": "year = 2019"})
    assert answer.json() == searcher.facets(names=["label", "entity:PER"], filter="year = 2019").to_json()
    answer = client.post("/v1/facets", json={"query": "boat", "names": ["year"], "of": 2})
    assert answer.json() == searcher.facets("boat", names=["year"], of=2).to_json()


def test_a_document_is_shown_whole(client: Any) -> None:
    assert client.get("/v1/documents/boat").json() == {
        "id": "boat",
        "text": "an electric boat crosses to Varberg",
        "metadata": {"year": 2023, "author": {"name": "Ada"}},
        "label": None,
        "entities": [{"type": "LOC", "text": "Varberg", "start": 28, "end": 35, "score": 0.5}],
        "passages": [{"start": 0, "end": 35}],
    }
    problem(client.get("/v1/documents/nope"), 404, "not-found")


def test_tag(client: Any) -> None:
    assert client.post("/v1/tag", json={"text": "Anna sings a song"}).json() == {
        "label": {"name": "music", "score": 0.75},
        "entities": [{"type": "PER", "text": "Anna", "start": 0, "end": 4, "score": 0.5}],
    }


def test_embeddings_are_of_length_1_in_both_forms(client: Any) -> None:
    texts = ["the sea", "a boat and a song"]
    answer = client.post("/v1/embeddings", json={"model": "demo", "input": texts}).json()
    wanted = np.stack([DemoAnalyser().vector(text) for text in texts]).astype(np.float64)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    got = np.array([item["embedding"] for item in answer["data"]])
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    assert [item["index"] for item in answer["data"]] == [0, 1]
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    packed = client.post(
        "/v1/embeddings", json={"model": "demo", "input": texts[0], "encoding_format": "base64"}
    ).json()
    decoded = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), dtype="<f4")
    np.testing.assert_array_equal(decoded, got[0].astype(np.float32))


def test_embeddings_can_be_shortened(client: Any) -> None:
    body = {"model": "demo", "input": "the sea", "dimensions": 4}
    short = np.array(client.post("/v1/embeddings", json=body).json()["data"][0]["embedding"])
    whole = DemoAnalyser().vector("the sea")[:4]
    np.testing.assert_allclose(short, whole / np.linalg.norm(whole), atol=1e-6)
    problem(client.post("/v1/embeddings", json={**body, "dimensions": 17}), 422, "invalid-query")


@pytest.mark.parametrize("tokens", [[1, 2, 3], [[1, 2], [3]]])
def test_token_ids_are_refused_clearly(client: Any, tokens: Any) -> None:
    content = problem(client.post("/v1/embeddings", json={"model": "demo", "input": tokens}), 422, "invalid-request")
    assert "token ids" in content["detail"]
    assert content["error"]["message"] == content["detail"]  # where OpenAI's clients look


def test_the_official_openai_client_works(client: Any) -> None:
    openai = pytest.importorskip("openai", reason="the package openai is not installed")
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0) as official:
        answer = official.embeddings.create(model="demo", input=["the sea", "a boat"])
        assert len(answer.data) == 2
        wanted = DemoAnalyser().vector("a boat")
        np.testing.assert_allclose(answer.data[1].embedding, wanted / np.linalg.norm(wanted), atol=1e-6)
        assert answer.usage.total_tokens == 4
        with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'"):
            official.embeddings.create(model="gpt", input="x")


def test_indexes_health_and_metrics(client: Any) -> None:
    (index,) = client.get("/v1/indexes").json()["indexes"]
    assert (index["name"], index["documents"], index["entity_types"]) == ("demo", 5, ["PER", "ORG", "LOC"])
    assert index["facets"][:2] == ["label", "entity"]
    assert {"year", "year:histogram"} <= set(index["facets"])
    assert client.get("/healthz").json() == client.get("/readyz").json() == {"status": "ok"}
    page = client.get("/metrics").text
    assert 'tagdex_requests_total{method="GET",route="/v1/indexes",status="200"}' in page


def test_several_indexes_are_told_apart_by_name(tmp_path: Path) -> None:
    with client_of(demo_service(tmp_path, "one", "two")) as client:
        problem(client.post("/v1/search", json={"query": "boat"}), 422, "invalid-request")
        problem(client.post("/v1/search", json={"query": "boat", "index": "../one"}), 404, "not-found")
        assert client.post("/v1/search", json={"query": "boat", "index": "two"}).json()["index"] == "two"
        assert client.delete("/v1/documents/boat", params={"index": "two"}).json() == {"index": "two", "removed": 1}
        assert client.get("/v1/documents/boat", params={"index": "one"}).status_code == 200
        problem(client.get("/v1/documents/boat", params={"index": "two"}), 404, "not-found")


def test_documents_are_added_replaced_and_found(writable: Any) -> None:
    documents = [
        {"id": "new/1", "text": "a new text from Oslo", "metadata": {"year": 2026}},
        {"id": "ball", "text": "the ball is found"},
        {"id": "boat", "text": "an electric boat crosses to Varberg", "metadata": {"year": 2024}},
        {"id": "song", "text": "a song about Anna and the sea", "metadata": {"year": 2021}},
    ]
    answer = writable.post("/v1/documents", json={"documents": documents})
    assert answer.json() == {"index": "demo", "added": 1, "replaced": 1, "updated": 1, "unchanged": 1, "duplicates": 0}
    assert writable.get("/v1/documents/new%2F1").json()["metadata"] == {"year": 2026}
    hits = writable.post("/v1/search", json={"query": "a new text from Oslo", "k": 1}).json()["hits"]
    assert hits[0]["id"] == "new/1"


def test_nothing_is_written_of_a_request_with_a_bad_document(writable: Any) -> None:
    documents = [{"id": "fine", "text": "x"}, {"id": "bad", "text": "y", "metadata": {"n": 2**70}}]
    content = problem(writable.post("/v1/documents", json={"documents": documents}), 422, "invalid-document")
    assert "documents[1]" in content["detail"]
    problem(writable.get("/v1/documents/fine"), 404, "not-found")


@pytest.mark.parametrize(
    "bad", [{"id": ""}, {"id": "a\x00b"}, {"id": "x" * 1001}, {"text": " "}, {"extra": 1}, {"vector": [1.0]}]
)
def test_documents_that_cannot_be_kept_are_refused(writable: Any, bad: dict[str, Any]) -> None:
    answer = writable.post("/v1/documents", json={"documents": [{"id": "a", "text": "b", **bad}]})
    assert answer.status_code == 422
    assert answer.json()["type"].rpartition(":")[2] in ("invalid-document", "invalid-request")


def test_documents_come_as_a_stream(writable: Any) -> None:
    lines = [json.dumps({"id": f"n{number}", "text": f"text number {number}"}) for number in range(300)]
    body = ("\n".join(lines) + "\n\n").encode()
    pieces = (body[at : at + 1_000] for at in range(0, len(body), 1_000))
    answer = writable.post("/v1/documents", content=pieces, headers={"Content-Type": "application/x-ndjson"})
    assert answer.json()["added"] == 300
    assert writable.get("/v1/documents/n299").json()["text"] == "text number 299"


def test_a_bad_line_of_a_stream_is_named_with_what_was_written(writable: Any) -> None:
    lines = [json.dumps({"id": f"n{number}", "text": "text"}) for number in range(200)]
    lines[150] = '{"id": "n150"'
    answer = writable.post(
        "/v1/documents", content="\n".join(lines).encode(), headers={"Content-Type": "application/x-ndjson"}
    )
    content = problem(answer, 422, "invalid-document")
    assert content["detail"] == "line 151 is not a document"
    assert content["written"]["added"] == 128
    assert writable.get("/v1/documents/n127").status_code == 200
    problem(writable.get("/v1/documents/n128"), 404, "not-found")


class Failing(DemoAnalyser):
    """Cannot read the text "spoiled"."""

    def analyse(self, texts: Sequence[str], *, tags: bool = True) -> list[Analysis]:
        if "spoiled" in texts:
            raise ModelError("spoiled")
        return super().analyse(texts, tags=tags)


@pytest.mark.parametrize("kind", ["application/x-ndjson", "application/json"])
def test_an_error_says_what_was_committed_before_it(tmp_path: Path, kind: str) -> None:
    """Long documents take several commits, of which only the last one fails."""
    path = build_index(tmp_path / "demo", [Document("old", "text")])
    model = as_text_model(Failing())
    documents = [{"id": f"n{number}", "text": "x" * 99_000} for number in range(3)]
    documents += [{"id": "bad", "text": "spoiled"}]
    lines = [json.dumps(one) for one in documents]
    body = "\n".join(lines) if "nd" in kind else f'{{"documents": [{", ".join(lines)}]}}'
    with client_of(Service({"demo": path}, settings=Settings(linger=0.05), model=model)) as client:
        answer = client.post("/v1/documents", content=body, headers={"Content-Type": kind})
        content = problem(answer, 422, "no-model")
        assert content["written"] == {"added": 3, "replaced": 0, "updated": 0, "unchanged": 0, "duplicates": 0}
        assert [client.get(f"/v1/documents/{one['id']}").status_code for one in documents] == [200, 200, 200, 404]
        assert 'tagdex_documents_written_total{index="demo"} 3.0' in client.get("/metrics").text


def test_documents_are_removed_by_id_and_by_filter(writable: Any) -> None:
    assert writable.delete("/v1/documents/song").json() == {"index": "demo", "removed": 1}
    problem(writable.delete("/v1/documents/song"), 404, "not-found")
    assert writable.delete("/v1/documents", params={"filter": "year = 2019"}).json()["removed"] == 2
    tree = json.dumps({"path": "year", "op": "=", "value": 2023})
    assert writable.delete("/v1/documents", params={"filter": tree}).json()["removed"] == 2
    assert writable.get("/v1/indexes").json()["indexes"][0]["documents"] == 0
    for wrong in ({}, {"filter": ""}, {"filter": "{"}, {"filter": "year >"}):
        assert writable.delete("/v1/documents", params=wrong).status_code == 422


@pytest.mark.parametrize("value", [str(2**64), "1e400", "NaN", r'"\ud800"'])
def test_a_filter_that_a_search_refuses_removes_nothing(writable: Any, value: str) -> None:
    tree = f'{{"path": "year", "op": "!=", "value": {value}}}'
    body = f'{{"query": "steel", "filter": {tree}}}'
    refused = writable.post("/v1/search", content=body, headers={"Content-Type": "application/json"})
    answer = writable.delete("/v1/documents", params={"filter": tree})
    assert problem(answer, 422, "invalid-filter")["detail"] == problem(refused, 422, "invalid-filter")["detail"]
    assert writable.get("/v1/indexes").json()["indexes"][0]["documents"] == 5


@pytest.mark.parametrize("text", ['{"not":' * 3_000, f'{{"id": {"1" * 5_000}}}'], ids=["deep", "long"])
def test_a_filter_that_cannot_be_read_is_refused(writable: Any, text: str) -> None:
    problem(writable.delete("/v1/documents", params={"filter": text}), 422, "invalid-filter")


def test_commits_of_others_are_served_at_once(writable: Any, tmp_path: Path) -> None:
    add_documents(tmp_path / "demo", [Document("late", "a late text")], model=as_text_model(DemoAnalyser()))
    hits = writable.post("/v1/search", json={"query": "a late text", "k": 1}).json()["hits"]
    assert hits[0]["id"] == "late"


def test_an_index_can_be_replaced_while_it_is_served(tmp_path: Path) -> None:
    """Also while its writer waits for more: it must not write to the folder that was there before."""
    service = demo_service(tmp_path, linger=60.0)
    build_index(tmp_path / "new", [Document(f"n{number}", f"new text {number}") for number in range(5)])
    with client_of(service) as client:

        def ids() -> set[str]:
            return {hit["id"][0] for hit in client.post("/v1/search", json={"query": "text", "k": 9}).json()["hits"]}

        body = {"documents": [{"id": "zero", "text": "a text"}]}
        assert client.post("/v1/documents", json=body).status_code == 200
        assert "z" in ids()
        (tmp_path / "demo").rename(tmp_path / "old")
        for answer in (
            client.post("/v1/search", json={"query": "boat"}),
            client.get("/v1/documents/boat"),
            client.get("/readyz"),
            client.get("/v1/indexes"),
            client.delete("/v1/documents/boat"),
            client.post("/v1/documents", json={"documents": [{"id": "lost", "text": "b"}]}),
        ):
            assert str(tmp_path) not in problem(answer, 503, "unavailable")["detail"]
        (tmp_path / "new").rename(tmp_path / "demo")
        assert client.get("/readyz").status_code == 200
        assert ids() == {"n"}
        assert client.post("/v1/documents", json=body).json()["added"] == 1
        assert client.get("/v1/documents/zero").json()["text"] == "a text"
        assert ids() == {"n", "z"}
    check_consistent(tmp_path / "demo")


def test_an_index_of_another_model_in_its_place_is_not_searched(writable: Any, tmp_path: Path) -> None:
    (tmp_path / "demo").rename(tmp_path / "old")
    build_vector_index(tmp_path / "demo", clustered(50))
    for path in ("/readyz", "/v1/documents/d1"):
        problem(writable.get(path), 503, "unavailable")
    problem(writable.post("/v1/search", json={"vector": [1.0] * 16}), 503, "unavailable")
    problem(writable.post("/v1/documents", json={"documents": [{"id": "a", "text": "b"}]}), 503, "unavailable")
    problem(writable.delete("/v1/documents/d1"), 503, "unavailable")


def test_while_another_writes_it_says_when_to_come_again(writable: Any, tmp_path: Path) -> None:
    lock = WriterLock(tmp_path / "demo" / LOCK)
    try:
        for answer in (
            writable.post("/v1/documents", json={"documents": [{"id": "a", "text": "b"}]}),
            writable.delete("/v1/documents/ball"),
            writable.delete("/v1/documents", params={"filter": "year = 2019"}),
        ):
            content = problem(answer, 409, "locked")
            assert answer.headers["retry-after"] == "1"
            assert str(tmp_path) not in content["detail"]
        assert writable.post("/v1/search", json={"query": "boat"}).status_code == 200
    finally:
        lock.release()
    assert writable.delete("/v1/documents/ball").status_code == 200


def test_the_lock_is_let_go_when_idle(writable: Any, tmp_path: Path) -> None:
    assert writable.delete("/v1/documents/ball").status_code == 200
    for _ in range(100):
        try:
            WriterLock(tmp_path / "demo" / LOCK).release()
            break
        except Exception:
            threading.Event().wait(0.05)
    else:
        pytest.fail("the lock was not let go within 5 seconds")


def test_an_index_of_vectors_needs_no_model(tmp_path: Path) -> None:
    vectors = clustered(50)
    service = Service({"given": build_vector_index(tmp_path / "given", vectors)}, settings=Settings(linger=0.05))
    with client_of(service) as client:
        hits = client.post("/v1/search", json={"vector": vectors[7].tolist(), "k": 1}).json()["hits"]
        assert hits[0]["id"] == "d7"
        problem(client.post("/v1/search", json={"query": "boat"}), 422, "no-model")
        problem(client.post("/v1/tag", json={"text": "boat"}), 422, "no-model")
        problem(client.post("/v1/embeddings", json={"model": "given", "input": "boat"}), 422, "no-model")
        assert client.post("/v1/similar", json={"ids": ["d7"]}).status_code == 200
        added = client.post("/v1/documents", json={"documents": [{"id": "v", "vector": (-vectors[7]).tolist()}]})
        assert added.json()["added"] == 1
        problem(client.post("/v1/documents", json={"documents": [{"id": "w", "text": "b"}]}), 422, "invalid-document")


def test_an_index_without_entities_is_told_without_its_folder(tmp_path: Path) -> None:
    model = DemoAnalyser(heads=False)
    index = build_index(tmp_path / "index", documents(), model)
    with client_of(Service({"raw": index}, model=as_text_model(model))) as client:
        answer = client.post("/v1/search", json={"query": "boat", "entities": "filter"})
        detail = problem(answer, 422, "invalid-query")["detail"]
        assert "without entities" in detail
        assert str(tmp_path) not in detail
