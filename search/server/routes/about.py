"""About the service: its indexes, its health, its metrics."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from indexer.errors import TagdexError
from search.server import metrics
from search.server.problems import Problem
from search.server.routes import answer, problems
from search.server.schemas import Health, IndexesAnswer
from search.server.service import OpenIndex, Service


def about_routes(service: Service) -> APIRouter:
    """GET /v1/indexes, /healthz, /readyz, /metrics."""
    router = APIRouter(tags=["Service"])

    @router.get(
        "/v1/indexes", response_model=IndexesAnswer, responses=problems(), summary="The indexes, and the limits"
    )
    async def indexes() -> Response:
        described = await service.searching.run(lambda: [_describe(index) for index in service.indexes.values()])
        return answer(
            {
                "indexes": described,
                "limits": asdict(service.limits),
                "writable": not service.settings.read_only,
                "reranker": service.settings.reranker is not None,
            }
        )

    @router.get("/healthz", response_model=Health, summary="Whether the process answers")
    async def healthz() -> Response:
        return answer({"status": "ok"})

    @router.get("/readyz", response_model=Health, responses=problems(), summary="Whether every index can be searched")
    async def readyz() -> Response:
        try:
            await service.searching.run(lambda: [index.searcher.commit for index in service.indexes.values()])
        except TagdexError:
            raise Problem(503, "unavailable", "an index cannot be read", retry_after=10) from None
        return answer({"status": "ok"})

    @router.get(
        "/metrics",
        summary="Figures for Prometheus",
        response_class=Response,
        responses={**problems(), 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def figures() -> Response:
        service.metrics.under_way.set(service.under_way)
        return Response(service.metrics.page(), media_type=metrics.MEDIA_TYPE)

    return router


def _describe(index: OpenIndex) -> dict[str, Any]:
    info = index.searcher.info
    return {
        "name": index.name,
        "documents": info.documents,
        "passages": info.passages,
        "entities": info.entities,
        "dimension": info.dimension,
        "model": index.model_name,
        "commit": info.commit,
        "class_labels": None if info.class_labels is None else list(info.class_labels),
        "entity_types": None if info.entity_types is None else list(info.entity_types),
        "facets": index.searcher.facet_names(),
    }
