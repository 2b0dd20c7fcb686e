"""The application: routes, their errors, the page, and the gate before them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.responses import Response

from indexer import __version__
from indexer.errors import InputError, TagdexError
from search.server.gate import Gate, openai_error
from search.server.openapi import openapi_of
from search.server.page_files import page_routes
from search.server.problems import MEDIA_TYPE, Problem, as_problem, to_bytes
from search.server.routes import once_each
from search.server.routes.about import about_routes
from search.server.routes.documents import document_routes, errors_of
from search.server.routes.searching import search_routes
from search.server.routes.texts import text_routes
from search.server.service import Service

_DESCRIPTION = "Semantic search over your own documents, with classes and named entities as filters."


def create_app(service: Service) -> Gate:
    """The ASGI application that answers from a service. Its lifespan's end closes the service."""
    return Gate(routes_of(service), service)


def routes_of(service: Service) -> FastAPI:
    """The routes alone, without what `Gate` checks; its `openapi()` is the document of the API."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG001 — FastAPI passes it
        yield
        await service.close()

    bearer = [Depends(HTTPBearer(auto_error=False, description="A token with the scope read or write."))]
    app = FastAPI(
        title="tagdex",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for router in (search_routes(service), document_routes(service), text_routes(service)):
        app.include_router(router, dependencies=[*bearer, Depends(once_each)])
    app.include_router(about_routes(service))
    app.routes.extend(page_routes())
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(TagdexError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_unforeseen)
    made: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not made:
            made.update(openapi_of(app, service.limits))
        return made

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _respond(request: Request, problem: Problem) -> Response:
    content = problem.to_json(request_id=request.scope.get("request_id"))
    if request.url.path == "/v1/embeddings":
        content |= openai_error(problem)
    return Response(to_bytes(content), problem.status, headers=problem.headers, media_type=MEDIA_TYPE)


def _on_problem(request: Request, error: Exception) -> Response:
    return _respond(request, error) if isinstance(error, Problem) else _on_unforeseen(request, error)


def _on_error(request: Request, error: Exception) -> Response:
    return _respond(request, as_problem(error)) if isinstance(error, TagdexError) else _on_unforeseen(request, error)


def _on_invalid(request: Request, error: Exception) -> Response:
    found = list(error.errors()) if isinstance(error, RequestValidationError) else []
    if any(one.get("type") == "json_invalid" for one in found):
        return _respond(request, Problem(400, "invalid-json", "the body is not JSON"))
    errors = errors_of(found)
    first = f": {errors[0]['place']}: {errors[0]['problem']}" if errors else ""
    return _respond(request, Problem(422, "invalid-request", f"the request is not as documented{first}", errors=errors))


def _on_http(request: Request, error: Exception) -> Response:
    if isinstance(error.__cause__, InputError):  # FastAPI's own error takes the place of what a body's reader raises
        return _respond(request, Problem(422, "invalid-request", str(error.__cause__)))
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict(getattr(error, "headers", None) or {})
    match status:
        case 404:
            problem = Problem(404, "not-found", "there is no such route; /docs lists them")
        case 405:
            problem = Problem(405, "method-not-allowed", "this route has other methods; /docs lists them")
        case 400:
            problem = Problem(400, "invalid-json", "the body is not JSON")
        case _:
            problem = Problem(status, "internal", "the request could not be answered")
    problem.headers |= headers
    return _respond(request, problem)


def _on_unforeseen(request: Request, error: Exception) -> Response:  # noqa: ARG001
    return _respond(request, Problem(500, "internal", "the request could not be answered"))
