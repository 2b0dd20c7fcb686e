"""What the model says about texts: class and entities, and embeddings in OpenAI's form."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.responses import Response

from indexer.records import FloatArray, label_json
from search.server import asking
from search.server.bodies import JSONRoute
from search.server.problems import Problem
from search.server.routes import answer, check_texts, problems
from search.server.schemas import EmbeddingsAnswer, EmbeddingsRequest, TagAnswer, TagRequest
from search.server.service import OpenIndex, Service


def text_routes(service: Service) -> APIRouter:
    """POST /v1/tag and /v1/embeddings."""
    router = APIRouter(route_class=JSONRoute, tags=["Texts"], responses=problems(404))
    limits = service.limits

    @router.post("/v1/tag", response_model=TagAnswer, summary="Class and entities of a text")
    async def tag(body: TagRequest) -> Response:
        index = service.index(body.index)
        asking.check_text(body.text, limits)
        batcher = index.model()
        if batcher.model.heads_fingerprint is None:
            raise Problem(
                422, "no-model", f"the model of index '{index.name}' has no heads: it gives no class or entities"
            )
        (analysis,) = await batcher.analyse([body.text], tags=True)
        return answer(
            {
                "label": label_json(analysis.label),
                "entities": [span.to_json(body.text) for span in analysis.spans],
            }
        )

    @router.post("/v1/embeddings", response_model=EmbeddingsAnswer, summary="Embeddings, as OpenAI's API gives them")
    async def embeddings(body: EmbeddingsRequest) -> Response:
        index = _index_of(body.model, service)
        texts = _texts(body)
        asking.check_batch(len(texts), limits, "inputs")
        for text in texts:
            asking.check_text(text, limits)
        check_texts(texts, limits)
        batcher = index.model()
        if body.dimensions is not None and body.dimensions > batcher.model.dimension:
            raise Problem(
                422,
                "invalid-query",
                f"dimensions may be {batcher.model.dimension:,} at most for this model, got {body.dimensions:,}",
            )
        analyses = await batcher.analyse(texts)
        tokens = sum(passage.tokens for analysis in analyses for passage in analysis.passages)
        return answer(
            {
                "object": "list",
                "model": body.model,
                "data": [
                    {
                        "object": "embedding",
                        "index": number,
                        "embedding": _encoded(unit(analysis.pooled, body.dimensions), body.encoding_format),
                    }
                    for number, analysis in enumerate(analyses)
                ],
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )

    return router


def unit(vector: FloatArray, dimensions: int | None) -> FloatArray:
    """The first `dimensions` numbers of a vector (`None`: all), brought to length 1; fp32."""
    exact = vector[:dimensions].astype(np.float64)
    length = float(np.linalg.norm(exact))
    shortened: FloatArray = (exact / length if length else exact).astype(np.float32)
    return shortened


def _encoded(vector: FloatArray, form: str) -> Any:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return vector.tolist()


def _texts(body: EmbeddingsRequest) -> list[str]:
    given: list[Any] = [body.input] if isinstance(body.input, str) else list(body.input)
    if not given:
        raise Problem(422, "invalid-request", "the input is empty")
    if not all(isinstance(text, str) for text in given):
        raise Problem(
            422,
            "invalid-request",
            "the input holds token ids, which are another tokenizer's: send texts (LangChain: "
            "check_embedding_ctx_length=False)",
        )
    return given


def _index_of(model: str, service: Service) -> OpenIndex:
    """An index by its name or by the name of its model."""
    for index in service.indexes.values():
        if model in (index.name, index.model_name):
            return index
    known = ", ".join(f"'{name}'" for name in service.indexes)
    raise Problem(404, "not-found", f"there is no model '{model[:100]}'; name an index: {known}")
