"""Evaluations in words and as JSON: one model, or two side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from indexer.training.bootstrap import Difference, Interval, compare, interval
from indexer.training.evaluation import Evaluation

_ABSTENTION_ROWS = (0.0, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True, slots=True)
class Result:
    """One model's scores with their intervals."""

    model: str
    evaluation: Evaluation
    scores: dict[str, Interval]

    @classmethod
    def of(cls, model: str, evaluation: Evaluation) -> Result:
        """Compute the intervals."""
        return cls(model, evaluation, {measure.name: interval(measure) for measure in evaluation.measures})

    def json(self) -> str:
        """One object; NaN is null."""
        table = self.evaluation.table
        rows = [dict(zip(table[0], row, strict=True)) for row in table[1:]] if table else []
        facts = {
            "model": self.model,
            "task": self.evaluation.task,
            "scores": {name: asdict(found) for name, found in self.scores.items()},
            **self.evaluation.details,
            "table": rows,
        }
        return orjson.dumps(facts).decode()

    def lines(self) -> list[str]:
        """A readable report."""
        details = self.evaluation.details
        lines = [f"{self.model}, {self.evaluation.task}, {counts(details)}"]
        for name, found in self.scores.items():
            lines.append(f"{name:<12} {shown(found.value)}  [{shown(found.low)}, {shown(found.high)}]")
        if "ece" in details:
            lines.append(f"{'ECE':<12} {shown(details['ece'])}  at the model's temperature {details['temperature']:g}")
        if "fitted_ece" in details:
            fitted = details["fitted_temperature"]
            lines.append(f"{'ECE, fitted':<12} {shown(details['fitted_ece'])}  at the temperature {fitted:g}")
        if "abstention" in details:
            lines.append("abstaining   " + abstaining(details["abstention"]))
            lines.append(
                f"{'answered':<12} {shown(details['answered'])}  at the model's threshold {details['threshold']:g}"
            )
        if details.get("unknown_labels"):
            lines.append("not known to the model, and so never right: " + ", ".join(details["unknown_labels"][:20]))
        return lines + table_lines(self.evaluation.table)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the same data."""

    models: tuple[str, str]
    task: str
    details: dict[str, Any]
    differences: dict[str, Difference]

    @classmethod
    def of(cls, models: Sequence[str], evaluations: Sequence[Evaluation]) -> Comparison:
        """Pair the measures of two evaluations."""
        first, second = evaluations
        differences = {a.name: compare(a, b) for a, b in zip(first.measures, second.measures, strict=True)}
        return cls((models[0], models[1]), first.task, first.details, differences)

    def json(self) -> str:
        """One object."""
        facts = {
            "first": self.models[0],
            "second": self.models[1],
            "task": self.task,
            "differences": {name: asdict(found) for name, found in self.differences.items()},
        }
        return orjson.dumps(facts).decode()

    def lines(self) -> list[str]:
        """A readable table: second minus first, with the 95 % interval of the paired bootstrap."""
        lines = [f"{self.task}, {counts(self.details)}", f"A {self.models[0]}", f"B {self.models[1]}"]
        lines.append(f"{'':<12} {'A':>7} {'B':>7} {'B − A':>8}  95 % interval")
        for name, found in self.differences.items():
            clear = "  *" if found.low > 0 or found.high < 0 else ""  # never where an interval has no ends
            lines.append(
                f"{name:<12} {shown(found.first)} {shown(found.second)} {found.difference:>+8.4f}  "
                f"[{found.low:+.4f}, {found.high:+.4f}]{clear}"
            )
        return lines


def counts(details: dict[str, Any]) -> str:
    """How much there was to measure on."""
    return ", ".join(f"{details[k]:,} {k}" for k in ("texts", "pairs", "queries", "documents") if k in details)


def abstaining(rows: Sequence[dict[str, Any]]) -> str:
    """Some rows of the curve."""
    chosen = [row for row in rows if any(math.isclose(row["threshold"], wanted) for wanted in _ABSTENTION_ROWS)]
    return ", ".join(
        f"below {row['threshold']:g}: answers {row['answered']:.1%}"
        + ("" if row["accuracy"] is None else f" at {row['accuracy']:.4f}")
        for row in chosen
    )


def table_lines(table: Sequence[tuple[Any, ...]]) -> list[str]:
    """Scores by label or type."""
    if not table:
        return []
    width = max(len(str(row[0])) for row in table)
    lines = ["", f"{table[0][0]!s:<{width}} " + " ".join(f"{name:>9}" for name in table[0][1:])]
    for name, *values in table[1:]:
        cells = " ".join(f"{value:>9,}" if isinstance(value, int) else f"{value:>9.4f}" for value in values)
        lines.append(f"{name!s:<{width}} {cells}")
    return lines


def shown(value: float) -> str:
    """Four digits, aligned."""
    return f"{value:>7.4f}"
