"""Filters over HTTP: what plain Python allows is what they allow, and a wrong one is refused at its place."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_filter_index import DIMENSION, DOCUMENTS, FACTS
from test_filters import LABELS, TYPES, filters

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")

from serving import client_of

from indexer.filters import Filter, format_filter, matches, to_json
from indexer.settings import settings_of_vectors
from indexer.store import Entry, IndexWriter
from search.server.service import Service
from search.server.settings import Settings

EXAMPLES = 1_000 if os.environ.get("TAGDEX_LONG_TESTS") else 60
GENERATED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)

PUT = ["", "(", ")", "'", '"', "`", "\\", " and ", " or ", "not ", "=", "\0", "😀", "]", ","]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = tmp_path_factory.mktemp("filters") / "index"
    tagged = replace(settings_of_vectors(DIMENSION), class_labels=tuple(LABELS), entity_types=tuple(TYPES))
    with IndexWriter(path, create=tagged) as writer:
        writer.write([Entry(document, analysis) for document, analysis in DOCUMENTS])
    with client_of(Service({"awkward": path}, settings=Settings())) as opened:
        yield opened


def search(client: Any, filter: Any) -> Any:
    body = {"vector": [1.0] * DIMENSION, "k": len(DOCUMENTS), "filter": filter}
    content = json.dumps(body).encode("utf-8")
    return client.post("/v1/search", content=content, headers={"Content-Type": "application/json"})


def text_within_json(filter: Filter) -> Any:
    """A text as one of the filters of an object."""
    return {"and": [{"everything": True}, format_filter(filter)]}


@given(filters(), st.sampled_from([format_filter, to_json, text_within_json]))
@GENERATED
def test_hits_are_what_plain_python_allows(client: Any, filter: Filter, form: Callable[[Filter], Any]) -> None:
    answer = search(client, form(filter))
    assert answer.status_code == 200, answer.text
    assert {hit["id"] for hit in answer.json()["hits"]} == {facts.id for facts in FACTS if matches(filter, facts)}


@given(filters(), st.data())
@GENERATED
def test_a_filter_that_was_cut_or_changed_is_answered_or_refused_at_its_place(
    client: Any, filter: Filter, data: st.DataObject
) -> None:
    text = format_filter(filter)
    at = data.draw(st.integers(0, len(text)))
    put = data.draw(
        st.sampled_from(["", "(", ")", "'", '"', "`", "\\", " and ", " or ", "not ", "=", "\0", "😀", "]", ","])
    )
    cut = data.draw(st.integers(0, 3))
    changed = text[:at] + put + text[at + cut :]
    answer = search(client, changed)
    if answer.status_code == 200:
        assert {hit["id"] for hit in answer.json()["hits"]} <= {facts.id for facts in FACTS}
        return
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == "urn:tagdex:problem:invalid-filter"
    assert 0 <= problem["position"] <= len(changed)
