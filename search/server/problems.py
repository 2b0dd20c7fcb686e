"""What goes wrong, as the client is told it: problem details of RFC 9457, without paths or traces of this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson

from indexer.errors import (
    CorruptIndexError,
    FilterError,
    FingerprintError,
    FormatError,
    InputError,
    LockedError,
    ModelError,
    NotAnIndexError,
    QueryError,
    StorageError,
    TagdexError,
)

MEDIA_TYPE = "application/problem+json"

TITLES = {
    "invalid-request": "The request is not as documented",
    "invalid-json": "The body is not JSON",
    "invalid-query": "The query cannot be answered as asked",
    "invalid-filter": "The filter cannot be used",
    "invalid-document": "A document cannot be kept",
    "limit-exceeded": "The request asks for more than this service allows",
    "no-model": "The index has no model",
    "unsupported-media-type": "The body has another media type than is accepted here",
    "unauthorized": "A token is needed",
    "forbidden": "The token does not allow this",
    "read-only": "This service does not change documents",
    "wrong-host": "The request is for another host",
    "not-found": "There is no such thing here",
    "method-not-allowed": "This cannot be done with that method",
    "locked": "Another process is writing to the index",
    "model-mismatch": "The index and the model do not belong together",
    "too-many-requests": "Too many requests are under way",
    "timeout": "The answer took too long",
    "index-damaged": "The index is damaged",
    "storage": "The disk refused a read or a write",
    "unavailable": "The service cannot answer now",
    "internal": "Something went wrong that nobody foresaw",
}


class Problem(Exception):  # noqa: N818 — RFC 9457's word
    """An error that a client is told about. `kind`: one of `TITLES`; `extra`: further members of the object."""

    def __init__(self, status: int, kind: str, detail: str, *, retry_after: int | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail, self.extra = status, kind, detail, extra
        self.headers: dict[str, str] = {} if retry_after is None else {"Retry-After": str(retry_after)}

    def to_json(self, *, request_id: str | None = None) -> dict[str, Any]:
        """The problem details object."""
        return {
            "type": f"urn:tagdex:problem:{self.kind}",
            "title": TITLES[self.kind],
            "status": self.status,
            "detail": self.detail,
            **({} if request_id is None else {"request_id": request_id}),
            **self.extra,
        }


def beyond(limit: str, maximum: float, got: float | None, what: str, *, status: int = 422, **extra: Any) -> Problem:
    """The problem of a request that is larger than a limit."""
    asked = "more" if got is None else f"{got:,}"
    members: dict[str, Any] = {"limit": limit, "maximum": maximum, **({} if got is None else {"got": got}), **extra}
    return Problem(status, "limit-exceeded", f"{what} may be {maximum:,} at most, got {asked}", **members)


def as_problem(error: TagdexError, *, index: str | None = None) -> Problem:
    """What a client is told of an error of the packages; messages that name folders are replaced."""
    name = "the index" if index is None else f"index '{index}'"
    match error:
        case FilterError():
            place: dict[str, Any] = {} if error.position is None else {"position": error.position}
            return Problem(422, "invalid-filter", str(error), **place)
        case QueryError():
            return Problem(422, "invalid-query", str(error))
        case InputError():
            return Problem(422, "invalid-document", str(error))
        case LockedError():
            return Problem(409, "locked", f"{name} is being written to by another process", retry_after=1)
        case FingerprintError():
            return Problem(
                409, "model-mismatch", f"{name} was built or tagged with another model than this service has loaded"
            )
        case ModelError():
            return Problem(422, "no-model", f"the model of {name} cannot do this")
        case CorruptIndexError():
            return Problem(500, "index-damaged", f"{name} contradicts its own checksums; its operator must verify it")
        case StorageError():
            return Problem(
                507,
                "storage",
                f"the disk of {name} refused a read or a write; what was acknowledged is kept",
                retry_after=10,
            )
        case NotAnIndexError() | FormatError():
            return Problem(503, "unavailable", f"{name} cannot be opened", retry_after=10)
        case _:
            return Problem(500, "internal", "the request could not be answered")


def to_bytes(content: Mapping[str, Any]) -> bytes:
    """JSON in UTF-8; what a client sent and what is no Unicode comes back escaped."""
    try:
        return orjson.dumps(content)
    except TypeError:
        return json.dumps(content).encode("ascii")
