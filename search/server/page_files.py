"""The page's files, read once; a request names one of them, and never a path."""

from __future__ import annotations

from importlib.resources import files

from starlette.responses import Response
from starlette.routing import Route

from search.server.problems import Problem

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def page_routes() -> list[Route]:
    """GET /, /docs and /page/NAME."""
    contents = {
        file.name: (file.read_bytes(), _TYPES[suffix])
        for file in files("search.server").joinpath("page").iterdir()
        if (suffix := "." + file.name.rpartition(".")[2]) in _TYPES
    }

    def respond(name: str) -> Response:
        if name not in contents:
            raise Problem(404, "not-found", "there is no such page")
        content, kind = contents[name]
        return Response(content, headers={"Content-Type": kind, "Cache-Control": "no-cache"})

    async def start(request: object) -> Response:  # noqa: ARG001 — Starlette passes it
        return respond("index.html")

    async def docs(request: object) -> Response:  # noqa: ARG001
        return respond("docs.html")

    async def file(request: object) -> Response:
        return respond(request.path_params["name"])  # type: ignore[attr-defined]

    return [Route("/", start), Route("/docs", docs), Route("/page/{name}", file)]
