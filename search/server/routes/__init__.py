"""The routes, one module a noun; each is thin: check, wait for a thread, answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from search.server.problems import MEDIA_TYPE, Problem, beyond, to_bytes
from search.server.schemas import ProblemOut
from search.server.settings import Limits

_PROBLEM = {"model": ProblemOut, "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemOut"}}}}

_MEANINGS = {
    400: "The body is not JSON, or the request is for another host.",
    401: "A token is needed.",
    403: "The token does not allow this, or the service is read-only.",
    404: "There is no such index or document.",
    408: "The body did not arrive in time.",
    409: "Another process is writing to the index, or it was built with another model.",
    413: "The body is too large.",
    415: "The body has another media type.",
    422: "The request is not as documented, or beyond a limit.",
    429: "Too many requests are under way.",
    500: "The index is damaged, or something went wrong that nobody foresaw.",
    503: "The answer took too long, the index cannot be read, or the service is being stopped.",
    507: "The disk refused a write.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What else a route may answer, for the OpenAPI document."""
    every = (400, 401, 403, 408, 413, 422, 429, 500, 503)
    return {status: {**_PROBLEM, "description": _MEANINGS[status]} for status in sorted({*every, *statuses})}


def check_texts(texts: Iterable[str], limits: Limits) -> None:
    """Raise `Problem` where a request's texts would keep the model for too long."""
    if (characters := sum(map(len, texts))) > limits.texts:
        raise beyond("texts", limits.texts, characters, "the characters of all texts of one request")


async def once_each(request: Request) -> None:
    """Refuse parameters that come twice, of which only the last would count. Raises `Problem`."""
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        if name in seen:
            raise Problem(422, "invalid-request", f"the parameter '{name[:80]}' is given more than once")
        seen.add(name)


def answer(content: Mapping[str, Any], *, status: int = 200) -> Response:
    """JSON, made here and not by FastAPI: the packages' own `to_json` is what the schemas describe."""
    return Response(to_bytes(content), status, media_type="application/json")
