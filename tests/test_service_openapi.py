"""The OpenAPI document is right, and answers to generated requests match it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")

from serving import demo_service, listening
from test_docs import script

from indexer.filters import from_json
from search.server.app import routes_of


def test_every_reference_leads_somewhere_and_limits_stand_in_it(tmp_path: Path) -> None:
    document = routes_of(demo_service(tmp_path, limits={"k": 50, "batch": 7})).openapi()
    schemas = document["components"]["schemas"]
    references = {part.split('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:]}
    assert references <= schemas.keys()
    assert schemas["SearchRequest"]["properties"]["k"]["maximum"] == 50
    assert schemas["DocumentsRequest"]["properties"]["documents"]["maxItems"] == 7
    assert {"$ref": "#/components/schemas/Filter"} in schemas["SearchRequest"]["properties"]["filter"]["anyOf"]
    for methods in document["paths"].values():
        for operation in methods.values():
            assert operation["summary"]
            assert operation["responses"]["200"]["content"]


def test_defaults_keep_to_a_small_limit(tmp_path: Path) -> None:
    schemas = routes_of(demo_service(tmp_path, limits={"k": 5})).openapi()["components"]["schemas"]
    defaults = {
        (name, field): schemas[name]["properties"][field]["default"]
        for name in ("SearchRequest", "SimilarRequest", "WantedFacets", "FacetsRequest")
        for field in schemas[name]["properties"].keys() & {"k", "of", "top", "rerank_top"}
    }
    assert len(defaults) == 7
    assert set(defaults.values()) == {5}


def test_the_schema_of_filters_has_every_form() -> None:
    from search.server.openapi import FILTER_SCHEMA

    text, *objects = FILTER_SCHEMA["oneOf"]
    assert text["type"] == "string"
    assert len(objects) == 11
    for form in objects:
        assert form["required"]
    with pytest.raises(Exception, match="expected one of the keys path, label, entity, id, and, or, not, everything"):
        from_json({})


def test_generated_requests_are_answered_as_documented(tmp_path: Path) -> None:
    """A few; `scripts/fuzz_service.py --cases 10000` is the long form."""
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    service = demo_service(tmp_path)
    schema = routes_of(service).openapi()
    with listening(service) as url:
        answered = script("fuzz_service").fuzz(url, schema, cases=240, seed=1)
    assert sum(answered.values()) > 100
    assert not [status for _, status in answered if status >= 500]
    assert {status for _, status in answered} >= {200, 422}
