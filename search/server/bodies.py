"""JSON as clients send it: an object with two members of one name is refused, of which the first would be dropped."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from indexer.readers.jsonl import unique_fields


def read_json(data: str | bytes) -> Any:
    """A value of JSON, integers of any length exact. Raises `ValueError`, `RecursionError`, `InputError`."""
    return json.loads(data, object_pairs_hook=unique_fields)


class JSONRoute(APIRoute):
    """A route whose body is read by `read_json`; `InputError` becomes the cause of an `HTTPException`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's, for a request that reads its JSON itself."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await handle(_JSONRequest(request.scope, request.receive))

        return handler


class _JSONRequest(Request):
    async def json(self) -> Any:
        return read_json(await self.body())
