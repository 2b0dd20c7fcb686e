"""Pictures as SVG, written by hand: curves of a run, a confusion matrix, a reliability diagram. Only the library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from indexer.training.calibration import Bin

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")
_WIDTH, _HEIGHT, _LEFT, _TOP = 640, 220, 60, 30
_POINTS = 400  # of a curve; more are put together

Points = Sequence[tuple[float, float]]


def curves(events: Sequence[Mapping[str, Any]]) -> str:
    """Losses above and dev scores below, by step over all phases, from the objects of a run's log."""
    offsets: dict[int, int] = {}
    for event in events:
        if event["event"] in ("step", "scores"):
            offsets[event["phase"]] = max(offsets.get(event["phase"], 0), event["of"])
    begins = {phase: sum(of for other, of in offsets.items() if other < phase) for phase in offsets}
    losses: dict[str, list[tuple[float, float]]] = {}
    scores: dict[str, list[tuple[float, float]]] = {}
    for event in events:
        if event["event"] not in ("step", "scores"):
            continue
        at = begins[event["phase"]] + event["step"]
        kind, target = ("losses", losses) if event["event"] == "step" else ("sets", scores)
        for name, value in event[kind].items():
            if value is not None and value == value:  # neither null nor NaN
                target.setdefault(name, []).append((at, value))
    charts = [chart("loss", {name: thinned(points) for name, points in losses.items()}, top=0)]
    if scores:
        charts.append(chart("dev score", scores, top=_HEIGHT + 70))
    return _svg(_WIDTH + 260, (_HEIGHT + 70) * len(charts), charts)


def thinned(points: Points) -> list[tuple[float, float]]:
    """At most some hundred points, each the mean of its neighbours."""
    size = max(1, -(-len(points) // _POINTS))
    parts = [points[at : at + size] for at in range(0, len(points), size)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def chart(title: str, lines: Mapping[str, Points], *, top: int) -> str:
    """A line for each name, with axes and a legend."""
    xs = [x for points in lines.values() for x, _ in points] or [0.0, 1.0]
    ys = [y for points in lines.values() for _, y in points] or [0.0, 1.0]
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)
    wide, tall = (right - left) or 1.0, (high - low) or 1.0
    y0 = top + _TOP
    parts = [
        f'<text x="{_LEFT}" y="{y0 - 10}" font-weight="bold">{escape(title)}</text>',
        f'<rect x="{_LEFT}" y="{y0}" width="{_WIDTH - _LEFT}" height="{_HEIGHT}" fill="none" stroke="#999"/>',
        f'<text x="{_LEFT - 6}" y="{y0 + 10}" text-anchor="end">{high:.3g}</text>',
        f'<text x="{_LEFT - 6}" y="{y0 + _HEIGHT}" text-anchor="end">{low:.3g}</text>',
        f'<text x="{_LEFT}" y="{y0 + _HEIGHT + 16}">{left:g}</text>',
        f'<text x="{_WIDTH}" y="{y0 + _HEIGHT + 16}" text-anchor="end">step {right:g}</text>',
    ]
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(
            f"{_LEFT + (x - left) / wide * (_WIDTH - _LEFT):.1f},{y0 + (high - y) / tall * _HEIGHT:.1f}"
            for x, y in points
        )
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<text x="{_WIDTH + 10}" y="{y0 + 12 + 16 * number}" fill="{colour}">{escape(name)}</text>')
    return "\n".join(parts)


def confusion(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Rows are the gold classes, columns the predicted; the darker, the larger the share of the row."""
    cell = 24 if len(labels) <= 30 else max(6, 720 // len(labels))
    room = 10 + 7 * max((len(label) for label in labels), default=1) if cell >= 10 else 10
    parts = []
    for row, (label, line) in enumerate(zip(labels, counts, strict=True)):
        total = sum(line) or 1
        if cell >= 10:
            at = room + row * cell + cell * 0.7
            parts.append(f'<text x="{room - 4}" y="{at:.1f}" text-anchor="end">{escape(label)}</text>')
            parts.append(f'<text transform="translate({at:.1f},{room - 4}) rotate(-90)">{escape(label)}</text>')
        for column, count in enumerate(line):
            if count:
                share = count / total
                hint = escape(f"{label} → {labels[column]}: {count}")
                parts.append(
                    f'<rect x="{room + column * cell}" y="{room + row * cell}" width="{cell}" height="{cell}" '
                    f'fill="#1f77b4" fill-opacity="{0.08 + 0.92 * share:.3f}"><title>{hint}</title></rect>'
                )
    side = cell * len(labels)
    parts.append(f'<rect x="{room}" y="{room}" width="{side}" height="{side}" fill="none" stroke="#999"/>')
    return _svg(room + side + 10, room + side + 10, parts)


def reliability_diagram(bins: Sequence[Bin], *, title: str) -> str:
    """Accuracy of each bin of confidence as a bar; on the diagonal the two are equal."""
    side, left, top = 300, 50, 40
    parts = [f'<text x="{left}" y="20" font-weight="bold">{escape(title)}</text>']
    for one in bins:
        hint = escape(f"{one.count:,} texts, confidence {one.confidence:.3f}, accuracy {one.accuracy:.3f}")
        parts.append(
            f'<rect x="{left + one.low * side:.1f}" y="{top + (1 - one.accuracy) * side:.1f}" '
            f'width="{(one.high - one.low) * side:.1f}" height="{one.accuracy * side:.1f}" fill="#1f77b4" '
            f'fill-opacity="0.6" stroke="white"><title>{hint}</title></rect>'
        )
    parts += [
        f'<line x1="{left}" y1="{top + side}" x2="{left + side}" y2="{top}" stroke="#d62728" stroke-dasharray="4"/>',
        f'<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="none" stroke="#999"/>',
        f'<text x="{left + side / 2}" y="{top + side + 30}" text-anchor="middle">confidence</text>',
        f'<text transform="translate({left - 30},{top + side / 2}) rotate(-90)" text-anchor="middle">accuracy</text>',
        f'<text x="{left}" y="{top + side + 16}">0</text>',
        f'<text x="{left + side}" y="{top + side + 16}" text-anchor="end">1</text>',
    ]
    return _svg(left + side + 20, top + side + 40, parts)


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )
