"""Documents: read one, add or replace many at once or as a stream, remove by id or by filter."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from json import JSONDecodeError
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from indexer.errors import InputError, TagdexError
from indexer.pipeline import Report, fitting
from indexer.readers.documents import Record, document_of
from indexer.readers.options import ReadOptions
from indexer.records import Document, label_json
from indexer.stored import StoredDocument
from search.server import asking
from search.server.bodies import read_json
from search.server.filtering import Filters, reading
from search.server.problems import Problem, as_problem, beyond
from search.server.routes import answer, problems
from search.server.schemas import DocumentIn, DocumentOut, DocumentsRequest, RemovedAnswer, WrittenAnswer
from search.server.service import OpenIndex, Service
from search.server.settings import Limits

T = TypeVar("T", DocumentIn, DocumentsRequest)

STREAM_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl")
STREAM_DOCUMENTS = 128  # that are written together
STREAM_BYTES = 2**20

_TEXT = ReadOptions(id_field="id")
_NO_TEXT = ReadOptions(id_field="id", text_required=False)
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/DocumentsRequest"}},
            STREAM_TYPES[0]: {
                "schema": {"type": "string", "description": "One DocumentIn a line; any number of lines."}
            },
        },
    }
}

IndexParameter = Annotated[str | None, Query(description="Which index; may be left out where there is only one.")]


def document_routes(service: Service) -> APIRouter:
    """GET, POST and DELETE /v1/documents."""
    router = APIRouter(tags=["Documents"])
    limits = service.limits

    @router.post(
        "/v1/documents",
        response_model=WrittenAnswer,
        responses=problems(404, 409, 415, 507),
        openapi_extra=_BODY,
        summary="Add or replace documents; the answer comes when they are durable",
    )
    async def add_documents(request: Request, index: IndexParameter = None) -> Response:
        _check_writable(service)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        total = Report()
        if kind in STREAM_TYPES:
            target = service.index(index)
            with _said_what_was_written(target, total):
                await _add_stream(request, target, service, total)
            return _written(target, total)
        if kind != "application/json":
            raise Problem(
                415,
                "unsupported-media-type",
                f"documents come as application/json or {STREAM_TYPES[0]}, not '{kind[:80]}'",
            )
        body = _parse(DocumentsRequest, await request.body())
        target = service.index(body.index if body.index is not None else index)
        asking.check_batch(len(body.documents), limits, "documents")
        documents = [_document(one, f"documents[{at}]", limits) for at, one in enumerate(body.documents)]
        with _said_what_was_written(target, total):
            await _add(target, documents, service, total)
        return _written(target, total)

    @router.get(
        "/v1/documents/{id:path}",
        response_model=DocumentOut,
        responses=problems(404),
        summary="A document as the index has it",
    )
    async def document(id: str, index: IndexParameter = None) -> Response:
        target = service.index(index)
        found = await service.searching.run(lambda: target.searcher.documents([id]))
        if id not in found:
            raise Problem(404, "not-found", f"there is no document with this id in index '{target.name}'")
        return answer(_document_json(found[id]))

    @router.delete(
        "/v1/documents/{id:path}",
        response_model=RemovedAnswer,
        responses=problems(404, 409, 507),
        summary="Remove a document",
    )
    async def remove_document(id: str, index: IndexParameter = None) -> Response:
        _check_writable(service)
        target = service.index(index)
        if not await target.ingest.remove([id]):
            raise Problem(404, "not-found", f"there is no document with this id in index '{target.name}'")
        return answer({"index": target.name, "removed": 1})

    @router.delete(
        "/v1/documents",
        response_model=RemovedAnswer,
        responses=problems(404, 409, 507),
        summary="Remove the documents that a filter matches",
    )
    async def remove_matching(
        filter: Annotated[str, Query(description="In the command line's syntax, or JSON.")],
        index: IndexParameter = None,
    ) -> Response:
        _check_writable(service)
        target = service.index(index)
        given: str | dict[str, Any] = filter
        if filter.lstrip().startswith("{"):
            try:
                given = read_json(filter)
            except (ValueError, RecursionError):
                raise Problem(422, "invalid-filter", "the filter begins like JSON, but is none") from None
            except InputError as error:
                raise Problem(422, "invalid-filter", f"the filter: {error.problem}") from None
        tree = await reading(service.searching, [given], lambda: Filters(limits).read(given))
        if tree is None:
            raise Problem(422, "invalid-filter", "the filter is missing")
        return answer({"index": target.name, "removed": await target.ingest.remove_matching(tree)})

    return router


async def _add(index: OpenIndex, documents: Sequence[Document], service: Service, total: Report) -> None:
    """Write documents, once it is known that the index can take all of them.

    `total` counts what is durable, also where writing ends with an error: long documents take several commits.
    """
    settings = index.searcher.settings
    model = index.searcher.model if index.batcher is not None and settings.fingerprint is not None else None
    if model is not None and (own := next((one for one in documents if one.vector is not None), None)) is not None:
        raise InputError(
            "has a vector, but the index was built with a model, which makes its vectors: leave it out",
            source=f"document '{own.id}'",
        )
    before, counter = replace(total), service.metrics.documents.labels(index.name)

    def count(report: Report) -> None:
        changed = _changed(total)
        for name in _COUNTS:
            setattr(total, name, getattr(before, name) + getattr(report, name))
        counter.inc(_changed(total) - changed)

    await index.ingest.add(list(fitting(documents, model, settings)), model, on_commit=count)


@contextmanager
def _said_what_was_written(index: OpenIndex, total: Report) -> Iterator[None]:
    """An error says what was written before it."""
    try:
        yield
    except (Problem, TagdexError) as error:
        problem = error if isinstance(error, Problem) else as_problem(error, index=index.name)
        problem.extra["written"] = _report(total)
        raise problem from error


async def _add_stream(request: Request, index: OpenIndex, service: Service, total: Report) -> None:
    """Write the lines of a stream batch by batch."""
    batch: list[Document] = []
    size = 0
    async for number, line in _lines(request, service.limits):
        try:
            document = _parse(DocumentIn, line)
        except RequestValidationError as error:
            raise Problem(
                422, "invalid-document", f"line {number} is not a document", errors=errors_of(error.errors())
            ) from error
        except InputError as error:
            raise Problem(422, "invalid-document", f"line {number}: {error.problem}") from None
        batch.append(_document(document, f"line {number}", service.limits))
        size += len(line)
        if len(batch) >= STREAM_DOCUMENTS or size >= STREAM_BYTES:
            await _add(index, batch, service, total)
            batch, size = [], 0
    if batch:
        await _add(index, batch, service, total)


async def _lines(request: Request, limits: Limits) -> AsyncIterator[tuple[int, bytes]]:
    """The lines of a body with their numbers, from 1, without blank ones."""
    rest, number = b"", 0
    try:
        async for piece in request.stream():
            *whole, rest = (rest + piece).split(b"\n") if b"\n" in piece else (rest + piece,)
            for line in whole:
                number += 1
                if line.strip():
                    yield number, line
            if len(rest) > limits.body:
                raise beyond("body", limits.body, None, "the bytes of a line", status=413, line=number + 1)
    except ClientDisconnect:
        return  # nobody waits for an answer; what was complete is kept
    if rest.strip():
        yield number + 1, rest


def _parse(form: type[T], data: bytes) -> T:
    """JSON as one of the schemas. Raises `RequestValidationError`, `InputError`."""
    try:
        return form.model_validate(read_json(data))
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_input=False)) from None
    except (ValueError, RecursionError) as error:
        place = f" at column {error.pos + 1}" if isinstance(error, JSONDecodeError) else ""
        raise RequestValidationError([{"type": "json_invalid", "loc": (), "msg": f"Invalid JSON{place}"}]) from None


def errors_of(errors: Sequence[Any]) -> list[dict[str, str]]:
    """What pydantic found, by place, without the values that it found there."""
    return [{"place": ".".join(map(str, error["loc"])), "problem": str(error["msg"])} for error in list(errors)[:20]]


def _document(given: DocumentIn, place: str, limits: Limits) -> Document:
    """A document that an index can keep. Raises `InputError`, `Problem`."""
    if len(given.text) > limits.text:
        raise beyond("text", limits.text, len(given.text), "the characters of a text", place=place)
    options = _TEXT if given.vector is None else _NO_TEXT
    record = Record({"id": given.id, "text": given.text, "metadata": given.metadata}, None)
    document = document_of(record, options, place)
    vector = asking.vector_of(given.vector)
    return replace(document, metadata=given.metadata, vector=None if vector is None else np.asarray(vector))


def _document_json(stored: StoredDocument) -> dict[str, Any]:
    return {
        "id": stored.id,
        "text": stored.text,
        "metadata": stored.metadata,
        "label": label_json(stored.label),
        "entities": [span.to_json(stored.text) for span in stored.spans],
        "passages": [{"start": passage.start, "end": passage.end} for passage in stored.passages],
    }


_COUNTS = ("added", "replaced", "updated", "unchanged", "duplicates")


def _changed(report: Report) -> int:
    return report.added + report.replaced + report.updated


def _report(report: Report) -> dict[str, int]:
    return {name: getattr(report, name) for name in _COUNTS}


def _written(index: OpenIndex, report: Report) -> Response:
    return answer({"index": index.name, **_report(report)})


def _check_writable(service: Service) -> None:
    if service.settings.read_only:
        raise Problem(403, "read-only", "this service was started with --read-only")
