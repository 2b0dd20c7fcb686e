"""How well an index answers queries whose relevant documents are known: nDCG, recall, MRR and MAP for every mode."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from indexer.errors import QueryError, TagdexError
from indexer.filters import Filter
from search.judged import Judgements, Queries
from search.paired import PairedDifference, paired_difference
from search.query import MODES

if TYPE_CHECKING:
    from search.searcher import Searcher

DEPTH = 100
BATCH = 64  # queries answered together


@dataclass(frozen=True, slots=True)
class Coverage:
    """What of the queries and judgements could be used. All but `queries` are ids.

    - `queries`: how many were asked; `unjudged`: queries that were not, since they have no judged document;
      `without_relevant`: since none of their judged documents is relevant; `without_text`: judged, but not asked.
    - `missing`: judged documents of the queries asked that are not in the index; `missing_relevant`: of those, the
      relevant ones, which no mode can find.
    - `filtered`: judged documents that are in the index, but not under the filter; their judgements are left out.
    """

    queries: int
    unjudged: tuple[str, ...]
    without_relevant: tuple[str, ...]
    without_text: tuple[str, ...]
    missing: tuple[str, ...]
    missing_relevant: tuple[str, ...]
    filtered: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModeResult:
    """One mode's values: `scores` by query and measure, `means` by measure; `seconds` that all its queries took."""

    mode: str
    means: Mapping[str, float]
    scores: Mapping[str, Mapping[str, float]]
    seconds: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two modes by one measure; wins are the second's."""

    measure: str
    first: str
    second: str
    paired: PairedDifference


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured: `measures` and `queries` in the order of showing; `depth` documents a query were ranked.

    `changed`: the index was written to meanwhile, so that modes may have seen different documents.
    """

    measures: tuple[str, ...]
    depth: int
    queries: Queries
    modes: tuple[ModeResult, ...]
    comparisons: tuple[Comparison, ...]
    coverage: Coverage
    changed: bool


def evaluate(
    searcher: Searcher,
    queries: Queries,
    qrels: Judgements,
    *,
    modes: Sequence[str] | None = None,
    fusion: str = "weighted",
    keyword_weight: float = 0.5,
    measures: Sequence[str] | None = None,
    depth: int = DEPTH,
    filter: Filter | str | None = None,
) -> Evaluation:
    """Ask every judged query in every mode, and compare what comes back with the judgements.

    `modes`: by default all that the index can answer; `fusion` and `keyword_weight` are those of "hybrid". `measures`:
    names of ir_measures; by default nDCG@10, RR@10 (MRR), and recall and average precision (MAP) at `depth`. Means are
    over the queries that have a relevant document, found or not. With a filter, documents that it does not allow are
    taken out of the judgements. Raises `QueryError` where nothing can be measured, `FilterError`, `ModelError`, and
    `TagdexError` where the extra `eval` is not installed.
    """
    modes = tuple(dict.fromkeys(available_modes(searcher) if modes is None else modes))
    if wrong := [mode for mode in modes if mode not in MODES]:
        raise QueryError(f"unknown mode '{wrong[0]}'; there are {', '.join(MODES)}")
    if not modes:
        raise QueryError("no mode to evaluate was given")
    if depth < 1:
        raise QueryError(f"depth must be at least 1, got {depth}")
    measured = _Measures(default_measures(depth) if measures is None else measures, depth=depth)
    before = searcher.commit
    asked, judged, coverage = _judged(searcher, queries, qrels, filter)
    if any(mode != "keyword" for mode in modes):
        _ = searcher.model  # loaded here, so that the first mode's time does not hold it
    results = []
    for mode in modes:
        started = time.perf_counter()
        rankings = rank(
            searcher, asked, mode=mode, fusion=fusion, keyword_weight=keyword_weight, depth=depth, filter=filter
        )
        seconds = time.perf_counter() - started
        scores = measured.score(judged, rankings)
        means = {name: sum(scores[id_][name] for id_ in asked) / len(asked) for name in measured.names}
        results.append(ModeResult(mode, means, scores, seconds))
    return Evaluation(
        measures=measured.names,
        depth=depth,
        queries=asked,
        modes=tuple(results),
        comparisons=tuple(_compared(results, measured.names, list(asked))),
        coverage=coverage,
        changed=searcher.commit != before,
    )


def available_modes(searcher: Searcher) -> tuple[str, ...]:
    """The modes in which the index can answer texts: only by words where nothing names its model."""
    return MODES if searcher.has_model else tuple(mode for mode in MODES if mode == "keyword")


def default_measures(depth: int) -> tuple[str, ...]:
    """nDCG and MRR of the first ten, recall and MAP of all that is ranked."""
    first = min(10, depth)
    return f"nDCG@{first}", f"RR@{first}", f"R@{depth}", f"AP@{depth}"


def rank(
    searcher: Searcher,
    queries: Queries,
    *,
    mode: str,
    fusion: str = "weighted",
    keyword_weight: float = 0.5,
    depth: int,
    filter: Filter | str | None = None,
) -> dict[str, list[str]]:
    """The ids of the `depth` best documents of each query, best first."""
    ids = list(queries)
    found: dict[str, list[str]] = {}
    for start in range(0, len(ids), BATCH):
        batch = ids[start : start + BATCH]
        answers = searcher.search_many(
            [queries[id_] for id_ in batch],
            k=depth,
            mode=mode,
            fusion=fusion,
            keyword_weight=keyword_weight,
            filter=filter,
        )
        found.update((id_, [hit.id for hit in hits]) for id_, hits in zip(batch, answers, strict=True))
    return found


class _Measures:
    """Measures by their names, computed by ir_measures (MacAvaney et al. 2022), which uses trec_eval's code."""

    def __init__(self, names: Sequence[str], *, depth: int) -> None:
        try:
            import ir_measures
        except ImportError as error:
            raise TagdexError("evaluation needs ir_measures: pip install 'tagdex[eval]'") from error
        self._parsed: dict[str, Any] = {}
        for name in names:
            try:
                measure = ir_measures.parse_measure(name)
            except (NameError, ValueError, TypeError) as error:
                raise QueryError(
                    f"unknown measure '{name}': names are those of ir_measures, such as nDCG@10, R@100 or P@5"
                ) from error
            cutoff = measure.params.get("cutoff")
            if cutoff is not None and cutoff > depth:
                raise QueryError(
                    f"{name} looks at {cutoff} documents a query, but {depth} are ranked: pass --depth {cutoff}"
                )
            try:
                list(ir_measures.iter_calc([measure], {"query": {"document": 1}}, {"query": {"document": 1.0}}))
            except Exception as error:  # of whatever kind: measures come from several programs, and assert too
                raise QueryError(f"ir_measures cannot compute {name} here: {error}") from error
            self._parsed[str(measure)] = measure
        if not self._parsed:
            raise QueryError("no measure was given")
        self._calculate = ir_measures.iter_calc

    @property
    def names(self) -> tuple[str, ...]:
        """As ir_measures writes them."""
        return tuple(self._parsed)

    def score(self, qrels: Judgements, rankings: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
        """By query and measure; 0 where nothing was found, or a measure has no value for a query."""
        # trec_eval sorts by score and breaks ties by id, descending; places instead of scores keep our own order.
        run = {query: {id_: float(-place) for place, id_ in enumerate(ids)} for query, ids in rankings.items() if ids}
        scores = {query: dict.fromkeys(self._parsed, 0.0) for query in rankings}
        found = {query: qrels[query] for query in run}
        for value in self._calculate(list(self._parsed.values()), found, run) if run else ():
            scores[value.query_id][str(value.measure)] = float(value.value)
        return scores


def _judged(
    searcher: Searcher, queries: Queries, qrels: Judgements, filter: Filter | str | None
) -> tuple[dict[str, str], dict[str, dict[str, int]], Coverage]:
    """The queries that can be measured, their judgements, and what was left out."""
    documents = {document for query in queries for document in qrels.get(query, ())}
    there = searcher.present(documents)
    allowed = there if filter is None else searcher.present(documents, filter=filter)
    filtered = there - allowed
    judged = {
        # A relevance below 0 is TREC's for junk: as far from relevant as 0 is, and no negative gain.
        query: {document: max(0, level) for document, level in qrels[query].items() if document not in filtered}
        for query in queries
        if qrels.get(query)
    }
    asked = {query: queries[query] for query in judged if any(judged[query].values())}
    if not asked:
        raise QueryError(
            f"none of the {len(queries):,} queries has a relevant document"
            + (" under the filter" if filtered else "")
            + f": there are judgements for {len(qrels):,} queries; do their ids belong together?"
        )
    judged = {query: judged[query] for query in asked}
    missing = {document for levels in judged.values() for document in levels if document not in there}
    relevant = {document for levels in judged.values() for document, level in levels.items() if level > 0}
    return (
        asked,
        judged,
        Coverage(
            queries=len(asked),
            unjudged=tuple(query for query in queries if not qrels.get(query)),
            without_relevant=tuple(query for query in queries if qrels.get(query) and query not in asked),
            without_text=tuple(query for query in qrels if query not in queries),
            missing=tuple(sorted(missing)),
            missing_relevant=tuple(sorted(missing & relevant)),
            filtered=tuple(sorted(filtered)),
        ),
    )


def _compared(results: Sequence[ModeResult], measures: Sequence[str], queries: Sequence[str]) -> list[Comparison]:
    return [
        Comparison(
            measure,
            first.mode,
            second.mode,
            paired_difference(
                [first.scores[id_][measure] for id_ in queries], [second.scores[id_][measure] for id_ in queries]
            ),
        )
        for first, second in combinations(results, 2)
        for measure in measures
    ]
