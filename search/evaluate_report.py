"""An evaluation as text for reading, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from indexer.command import counted, one_line
from search.evaluate import Comparison, Coverage, Evaluation

_NAMED = 3  # ids that a remark names


def report_lines(evaluation: Evaluation, *, compare: bool = True) -> Iterator[str]:
    """The table of measures by mode, the comparisons of modes, and what was left out."""
    asked = evaluation.coverage.queries
    queries = "1 query" if asked == 1 else f"{asked:,} queries"
    yield f"{queries}, {counted(evaluation.depth, 'document')} ranked for each"
    yield ""
    rows = [["mode", *evaluation.measures, "ms/query"]]
    for result in evaluation.modes:
        milliseconds = 1000 * result.seconds / len(result.scores)
        rows.append(
            [result.mode, *(f"{result.means[name]:.4f}" for name in evaluation.measures), f"{milliseconds:.1f}"]
        )
    yield from _table(rows, left=1)
    if compare and evaluation.comparisons:
        yield ""
        rows = [["compared", "measure", "difference", "95 % interval", "wins", "losses", "ties"]]
        rows += [_comparison_row(comparison) for comparison in evaluation.comparisons]
        yield from _table(rows, left=2)
    if remarks := list(_remarks(evaluation)):
        yield ""
        yield from remarks


def query_lines(evaluation: Evaluation) -> Iterator[str]:
    """A line for each query: its id, the values of every mode in the order of the heading, its text."""
    several = len(evaluation.modes) > 1
    heading = [
        f"{result.mode} {name}" if several else name for result in evaluation.modes for name in evaluation.measures
    ]
    rows = [["query", *heading, "text"]]
    for id_, text in evaluation.queries.items():
        values = [result.scores[id_][name] for result in evaluation.modes for name in evaluation.measures]
        rows.append([one_line(id_), *(f"{value:.4f}" for value in values), one_line(" ".join(text.split()))])
    yield from _table(rows, left=1, last_left=True)


def query_json(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """An object for each query: {"query", "text", "scores": {mode: {measure: value}}}."""
    for id_, text in evaluation.queries.items():
        scores = {result.mode: dict(result.scores[id_]) for result in evaluation.modes}
        yield {"query": id_, "text": text, "scores": scores}


def evaluation_json(evaluation: Evaluation, *, compare: bool = True) -> dict[str, Any]:
    """The whole as one object: {"queries", "depth", "modes", "comparisons", "left_out", …}."""
    coverage = evaluation.coverage
    return {
        "queries": coverage.queries,
        "depth": evaluation.depth,
        "modes": {
            result.mode: {"measures": dict(result.means), "seconds": round(result.seconds, 3)}
            for result in evaluation.modes
        },
        "comparisons": [_comparison_json(comparison) for comparison in evaluation.comparisons] if compare else [],
        "left_out": {
            "unjudged": list(coverage.unjudged),
            "without_relevant": list(coverage.without_relevant),
            "without_text": list(coverage.without_text),
        },
        "not_in_index": {"judged": list(coverage.missing), "relevant": list(coverage.missing_relevant)},
        "filtered": list(coverage.filtered),
        "changed": evaluation.changed,
    }


def _comparison_row(comparison: Comparison) -> list[str]:
    paired = comparison.paired
    return [
        f"{comparison.second} − {comparison.first}",
        comparison.measure,
        f"{paired.difference:+.4f}",
        f"[{paired.low:+.4f}, {paired.high:+.4f}]",
        f"{paired.wins:,}",
        f"{paired.losses:,}",
        f"{paired.ties:,}",
    ]


def _comparison_json(comparison: Comparison) -> dict[str, Any]:
    paired = comparison.paired
    return {
        "first": comparison.first,
        "second": comparison.second,
        "measure": comparison.measure,
        "difference": paired.difference,
        "interval": [paired.low, paired.high],
        "wins": paired.wins,
        "losses": paired.losses,
        "ties": paired.ties,
    }


def _remarks(evaluation: Evaluation) -> Iterator[str]:
    coverage: Coverage = evaluation.coverage
    for remark, ids in (
        ("queries left out, having no judged document", coverage.unjudged),
        ("queries left out, having no relevant document", coverage.without_relevant),
        ("judged queries without a text, so not asked", coverage.without_text),
        ("judged documents not under the filter, and left out", coverage.filtered),
        ("judged documents not in the index", coverage.missing),
        ("relevant ones among those, which count as not found", coverage.missing_relevant),
    ):
        if ids:
            named = ", ".join(one_line(id_) for id_ in ids[:_NAMED]) + (", …" if len(ids) > _NAMED else "")
            yield f"{remark}: {len(ids):,} ({named})"
    if evaluation.changed:
        yield "the index changed meanwhile, so that modes may have been asked about different documents"


def _table(rows: Sequence[Sequence[str]], *, left: int, last_left: bool = False) -> Iterator[str]:
    """Columns of equal width, the first `left` of them aligned left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.ljust(width) if column < left or (last_left and column == len(row) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
