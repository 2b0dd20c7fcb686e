"""What the operator of a service chooses: limits, and what is logged."""

from __future__ import annotations

from dataclasses import dataclass, field

from indexer.errors import QueryError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may ask for; more is refused before any work is done, by a problem that names the limit.

    - `body`: bytes of a body, and of one line where documents are streamed. `stream`: bytes of such a stream.
    - `batch`: searches, documents or texts of one request.
    - `k`: offset + k, and the hits that facets are counted over. `passages`: k times the passages of
      each hit, with their neighbours.
    - `text`: characters of a text. `texts`: of all texts of one request that go through the model.
    - `filter`: characters of a filter, and members of one in JSON. `filter_depth`: levels of a filter. `filters`:
      characters of all filters of one request, equal ones counted once.
    - `seconds`: from a request's first byte to its answer; between two pieces of a stream.
    - `requests`: how many are answered or wait at a time, `streams`: how many bring documents as a stream.
    - `answer`: bytes of an answer to searches; known only when it has been found.
    - `memory`: bytes of all bodies that are held at a time.
    """

    body: int = 8 * 2**20
    stream: int = 2**30
    batch: int = 256
    k: int = 1_000
    passages: int = 10_000
    text: int = 100_000
    texts: int = 400_000
    filter: int = 10_000
    filter_depth: int = 32
    filters: int = 100_000
    answer: int = 32 * 2**20
    seconds: float = 30.0
    requests: int = 64
    streams: int = 4
    memory: int = 256 * 2**20

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise QueryError(f"the limit '{name}' must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a service behaves.

    - `workers`: threads that search; `None` for one per core.
    - `batch_texts`: texts that go through the model together at most, 1 for batching switched off. `batch_wait`:
      seconds that a query waits for others at most, and only while others are under way.
    - `linger`: seconds without anything to write before an index's lock is let go.
    - `read_only`: whether documents can be changed at all. `log_texts`: whether the log shows what was asked.
    - `reranker`: a cross-encoder, by name or folder, that requests may ask for; `None` for none.
    - `loopback_only`: requests must name this machine as their host, because nobody needs a token.
    """

    limits: Limits = field(default_factory=Limits)
    workers: int | None = None
    batch_texts: int = 32
    batch_wait: float = 0.002
    linger: float = 0.5
    read_only: bool = False
    log_texts: bool = False
    reranker: str | None = None
    loopback_only: bool = False
