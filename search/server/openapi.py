"""The OpenAPI document: FastAPI's, with the filter language, the documents' form and the limits put in."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from search.server.schemas import DocumentIn, DocumentsRequest
from search.server.settings import Limits

_PATH = {"type": "string", "minLength": 1, "description": "A metadata field; nested keys are joined by dots."}
_SCALAR = {"type": ["string", "number", "boolean"]}
_FILTERS = {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Filter"}}


def _object(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


FILTER_SCHEMA: dict[str, Any] = {
    "title": "Filter",
    "description": "A filter as a tree, or in the command line's syntax; docs/FILTERS.md describes both.",
    "oneOf": [
        {"type": "string", "minLength": 1},
        _object("path", "op", "value", path=_PATH, op={"enum": ["=", "!=", "<", "<=", ">", ">="]}, value=_SCALAR),
        _object("path", "op", "values", path=_PATH, op={"const": "in"}, values={"type": "array", "items": _SCALAR}),
        _object(
            "path",
            "op",
            path=_PATH,
            op={"const": "between"},
            low={"type": ["string", "number", "null"]},
            high={"type": ["string", "number", "null"]},
        ),
        _object("path", "op", path=_PATH, op={"const": "exists"}),
        _object("label", label={"type": "string"}),
        _object(
            "entity",
            entity=_object(
                "match",
                type={"type": ["string", "null"]},
                text={"type": ["string", "null"]},
                match={"enum": ["exact", "prefix", "any"]},
            ),
        ),
        _object("id", id={"type": "array", "items": {"type": "string"}}),
        _object("and", **{"and": _FILTERS}),
        _object("or", **{"or": _FILTERS}),
        _object("not", **{"not": {"$ref": "#/components/schemas/Filter"}}),
        _object("everything", everything={"const": True}),
    ],
}


def openapi_of(app: FastAPI, limits: Limits) -> dict[str, Any]:
    """The document, made once."""
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
    )
    schemas = document["components"]["schemas"]
    _, more = models_json_schema(
        [(DocumentIn, "validation"), (DocumentsRequest, "validation")], ref_template="#/components/schemas/{model}"
    )
    schemas |= more["$defs"]
    schemas["Filter"] = FILTER_SCHEMA
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for schema in schemas.values():
        for field in schema.get("properties", {}).values():
            if field.pop("x-filter", None):
                field["anyOf"] = [
                    {"type": "string", "minLength": 1, "maxLength": limits.filter},
                    {"$ref": "#/components/schemas/Filter"},
                    {"type": "null"},
                ]
    for name in ("SearchRequest", "SimilarRequest"):
        schemas[name]["properties"]["k"]["maximum"] = limits.k
        schemas[name]["properties"]["offset"]["maximum"] = limits.k - 1
    for name in ("SearchRequest", "SimilarRequest", "WantedFacets", "FacetsRequest"):
        for field in schemas[name]["properties"].keys() & {"k", "of", "top", "rerank_top"}:
            number = schemas[name]["properties"][field]
            number["default"] = min(number["default"], limits.k)
    schemas["DocumentsRequest"]["properties"]["documents"]["maxItems"] = limits.batch
    schemas["BatchRequest"]["properties"]["searches"]["maxItems"] = limits.batch
    for path in document["paths"].values():
        for operation in path.values():  # FastAPI's own form of a validation error is not ours
            found = operation["responses"].get("422")
            if found is not None and "HTTPValidationError" in str(found):
                del operation["responses"]["422"]
    return document
