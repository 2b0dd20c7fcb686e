"""Searching: by text or vector, several at once, like documents, and facets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from indexer.errors import TagdexError
from indexer.records import Analysis, FloatArray
from indexer.snapshot import Snapshot
from search.explain import Answer
from search.facets import Facets
from search.paging import Page
from search.server import asking
from search.server.asking import Asked
from search.server.batching import Together
from search.server.bodies import JSONRoute
from search.server.filtering import Filters, reading
from search.server.problems import Problem, as_problem, beyond, to_bytes
from search.server.routes import check_texts, problems
from search.server.schemas import (
    BatchAnswer,
    BatchRequest,
    FacetsAnswer,
    FacetsRequest,
    SearchAnswer,
    SearchRequest,
    SimilarRequest,
    WantedFacets,
)
from search.server.service import OpenIndex, Service
from search.server.settings import Limits


def search_routes(service: Service) -> APIRouter:
    """POST /v1/search, /v1/search/batch, /v1/similar, /v1/facets."""
    router = APIRouter(route_class=JSONRoute, tags=["Search"], responses=problems(404, 409))
    limits = service.limits
    together = {
        index.name: Together(
            partial(found_together, index, limits=limits), size=service.settings.batch_texts, threads=service.searching
        )
        for index in service.indexes.values()
    }

    @router.post("/v1/search", response_model=SearchAnswer, summary="Search by text or vector")
    async def search(body: SearchRequest) -> Response:
        index = service.index(body.index)
        filters = Filters(limits)
        asked = await reading(
            service.searching, [body.filter], lambda: asking.search_of(body, service.settings, filters)
        )
        analysis = None
        if asking.needs_model(asked, index):
            (analysis,) = await index.model().analyse([asked.text], tags=asked.tags)
        if asked.joins:
            return _json(await together[index.name].answer((asked, analysis)))
        return _json(await service.searching.run(lambda: _within(limits, found(index, asked, analysis))))

    @router.post("/v1/search/batch", response_model=BatchAnswer, summary="Several searches at once")
    async def search_batch(body: BatchRequest) -> Response:
        asking.check_batch(len(body.searches), limits, "searches")
        filters = Filters(limits)

        def read(number: int, one: SearchRequest) -> tuple[OpenIndex, Asked]:
            with _naming(number):
                index, asked = service.index(one.index), asking.search_of(one, service.settings, filters)
                asking.needs_model(asked, index)
                return index, asked

        searches = await reading(
            service.searching,
            [one.filter for one in body.searches],
            lambda: [read(number, one) for number, one in enumerate(body.searches)],
        )
        check_texts((asked.text for _, asked in searches if asked.embeds), limits)
        analyses: list[Analysis | None] = [None] * len(searches)
        ways = {(index.name, asked.tags): index for index, asked in searches}
        for (name, tags), index in ways.items():
            at = [
                number
                for number, (of, asked) in enumerate(searches)
                if (of.name, asked.tags) == (name, tags) and asked.embeds
            ]
            if at:
                made = await index.model().analyse([searches[number][1].text for number in at], tags=tags)
                for number, analysis in zip(at, made, strict=True):
                    analyses[number] = analysis

        def answer_all() -> bytes:
            answers, size = [], 0
            for number, (index, asked) in enumerate(searches):
                with _naming(number):  # as JSON at once, so that the hits of one search at a time are held
                    answers.append(_within(limits, found(index, asked, analyses[number]), before=size))
                size += len(answers[-1])
            return b'{"answers":[' + b",".join(answers) + b"]}"

        return _json(await service.searching.run(answer_all))

    @router.post("/v1/similar", response_model=SearchAnswer, summary="More like these, less like those")
    async def similar(body: SimilarRequest) -> Response:
        index = service.index(body.index)
        examples, filters = asking.examples_of(body, limits), Filters(limits)
        query = await reading(service.searching, [body.filter], lambda: asking.query_of(body, limits, filters))
        texts = [*examples.texts, *examples.not_texts]
        check_texts(texts, limits)
        encoded = [one.pooled for one in await index.model().analyse(texts)] if texts else []

        def answer_similar() -> bytes:
            hits = index.searcher.similar(
                examples,
                k=query.k,
                filter=query.filter,
                offset=query.offset,
                min_score=query.min_score,
                distinct=query.distinct,
                mmr=query.mmr,
                encoded=encoded,
            )
            return _within(limits, {"index": index.name, "hits": [hit.to_json() for hit in hits]})

        return _json(await service.searching.run(answer_similar))

    @router.post("/v1/facets", response_model=FacetsAnswer, summary="Count by class, entity and metadata")
    async def facets(body: FacetsRequest) -> Response:
        index, body = service.index(body.index), asking.lowered(body, limits)
        filters = Filters(limits)
        text, vector, filter = await reading(
            service.searching, [body.filter], lambda: asking.facet_query_of(body, limits, filters)
        )
        subject: str | FloatArray | None = text if vector is None else vector
        embedded: FloatArray | None = None
        if text is not None and body.mode != "keyword":
            (analysis,) = await index.model().analyse([text])
            embedded = analysis.pooled

        def count() -> bytes:
            counted = index.searcher.facets(
                subject,
                mode=body.mode,
                names=body.names,
                filter=filter,
                of=body.of,
                min_score=body.min_score,
                top=body.top,
                significant=body.significant,
                vector=embedded,
            )
            return _within(limits, counted.to_json())

        return _json(await service.searching.run(count))

    return router


@contextmanager
def _naming(search: int) -> Iterator[None]:
    """Say in a problem which search of several it is about."""
    try:
        yield
    except (Problem, TagdexError) as error:
        problem = error if isinstance(error, Problem) else as_problem(error)
        problem.extra["search"] = search
        raise problem from error


def found(index: OpenIndex, asked: Asked, analysis: Analysis | None) -> dict[str, Any]:
    """The answer to one search; runs in a thread. `analysis`: what the model says about the text."""
    if asked.facets is None:
        return _content(index, asked, _answered(index, asked, analysis))
    with index.searcher.snapshot() as snapshot:  # so that hits and counts are of one commit
        content = _content(index, asked, _answered(index, asked, analysis, snapshot))
        return content | {"facets": _facets(index, asked, analysis, asked.facets, snapshot).to_json()}


def _answered(
    index: OpenIndex, asked: Asked, analysis: Analysis | None, snapshot: Snapshot | None = None
) -> Answer | Page:
    searcher, query = index.searcher, asked.query
    if asked.cursor is not None:
        cursor = asked.cursor or None
        return searcher.answer_page(
            asked.subject, query, cursor, explain=asked.explain, analysis=analysis, snapshot=snapshot
        )
    if asked.vector is None:
        return searcher.answer(asked.text, query, explain=asked.explain, analysis=analysis, snapshot=snapshot)
    return searcher.answer_vector(asked.vector, query, explain=asked.explain, snapshot=snapshot)


def found_together(
    index: OpenIndex, questions: Sequence[tuple[Asked, Analysis | None]], *, limits: Limits
) -> list[bytes]:
    """The answers to several searches of an index, as JSON; runs in a thread."""
    answers = index.searcher.answer_many([(asked.subject, asked.query, analysis) for asked, analysis in questions])
    return [
        _within(limits, _content(index, asked, answered))
        for (asked, _), answered in zip(questions, answers, strict=True)
    ]


def _content(index: OpenIndex, asked: Asked, answered: Answer | Page) -> dict[str, Any]:
    """An answer as JSON, without facets."""
    content: dict[str, Any] = {"index": index.name, "hits": [hit.to_json() for hit in answered.hits]}
    if isinstance(answered, Page):
        content["cursor"] = answered.cursor
    if asked.explain:
        content["explanation"] = answered.explanation.to_json()
    return content


def _facets(
    index: OpenIndex, asked: Asked, analysis: Analysis | None, wanted: WantedFacets, snapshot: Snapshot
) -> Facets:
    query = asked.query
    return index.searcher.facets(
        asked.subject,
        names=wanted.names,
        filter=query.filter,
        of=wanted.of,
        min_score=query.min_score,
        mode=query.mode,
        top=wanted.top,
        significant=wanted.significant,
        vector=analysis.pooled if analysis is not None and query.mode != "keyword" else None,
        snapshot=snapshot,
    )


def _within(limits: Limits, content: Mapping[str, Any], *, before: int = 0) -> bytes:
    """An answer as JSON. Raises `Problem` where it has too many bytes, with those of the answers before it."""
    answer = to_bytes(content)
    if before + len(answer) > limits.answer:
        raise beyond("answer", limits.answer, before + len(answer), "the bytes of an answer")
    return answer


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")
