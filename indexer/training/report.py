"""What the data of a run hold, before anything is trained: counts, problems, texts that stand on both sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from indexer.training.data import TaggedText
from indexer.training.encoded import Encoded
from indexer.training.sets import ClassExample, DataSet, Example, PairExample


@dataclass(frozen=True, slots=True)
class SetReport:
    """One set. `labels`: texts of each class, or spans of each type, to train on.

    `shared`: dev examples that also stand in the training part; `contradictions`: texts there with two labels;
    `unknown`: labels of dev that the head does not know; `long`: texts longer than a window, `lost`: spans that were
    cut by its end. `misaligned`, `overlapping`, `empty`: spans that were widened or left out, with the first of each.
    `unnamed`: spans of each type that `types` does not name, which are left out.
    """

    title: str
    task: str
    train: int
    dev: int
    labels: Mapping[str, int]
    shared: int
    contradictions: int
    unknown: tuple[str, ...]
    long: int
    lost: int
    misaligned: int
    overlapping: int
    empty: int
    unnamed: Mapping[str, int]
    shown: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Report:
    """All sets, and what became of each head."""

    sets: tuple[SetReport, ...]
    heads: Mapping[str, str]

    def lines(self) -> list[str]:
        """The report in words."""
        lines = [f"{name} head: {what}" for name, what in self.heads.items()]
        for one in self.sets:
            lines.append(f"{one.title}: {one.train:,} to train on, {one.dev:,} to measure on")
            if one.labels:
                counts = sorted(one.labels.items(), key=lambda item: (-item[1], item[0]))
                shown = [f"{name} {count:,}" for name, count in (counts if len(counts) <= 12 else counts[:5])]
                if len(counts) > 12:
                    shown += ["…", *(f"{name} {count:,}" for name, count in counts[-3:])]
                lines.append(f"  {len(counts)} labels: {', '.join(shown)}")
            for count, what in (
                (one.shared, "dev examples also stand in the training part"),
                (one.contradictions, "texts stand there with two labels"),
                (one.long, "texts are longer than one window" + _LONG[one.task]),
                (one.lost, "spans are cut by the end of a window and left out"),
                (one.misaligned, "spans were not whole words"),
                (one.overlapping, "spans overlap another and were left out"),
                (one.empty, "spans are empty or outside their text, and were left out"),
            ):
                if count:
                    lines.append(f"  note: {count:,} {what}")
            lines += [f"    {kind}, for example {example}" for kind, example in one.shown.items()]
            if one.unnamed:
                left = ", ".join(f"{name} {count:,}" for name, count in sorted(one.unnamed.items())[:10])
                lines.append(f"  note: left out, as types does not name them: {left}")
            if one.unknown:
                lines.append(
                    f"  note: in dev, but not known to the head, and so never right: {', '.join(one.unknown[:10])}"
                )
        return lines


_LONG = {
    "class": ", each part is an example",
    "tags": ", each part is an example",
    "similarity": ": their first window is trained on",
}


def data_report(
    sets: Sequence[DataSet], encoded: Sequence[Encoded], heads: Mapping[str, str], known: Mapping[str, Sequence[str]]
) -> Report:
    """Count everything. `encoded` are the training parts, in the order of `sets`; `known` each head's labels."""
    parts = zip(sets, encoded, strict=True)
    return Report(tuple(_set_report(one, part, known.get(one.task, ())) for one, part in parts), heads)


def _set_report(one: DataSet, encoded: Encoded, of_head: Sequence[str]) -> SetReport:
    labels = _labels(one.train)
    texts: dict[str, set[str]] = {}
    for example in one.train:
        if isinstance(example, ClassExample):
            texts.setdefault(_key(example), set()).add(example.label)
    known = {_key(example) for example in one.train}
    return SetReport(
        title=one.title,
        task=one.task,
        train=len(one.train),
        dev=len(one.dev),
        labels=dict(labels),
        shared=sum(_key(example) in known for example in one.dev),
        contradictions=sum(len(found) > 1 for found in texts.values()),
        unknown=tuple(sorted(_labels(one.dev).keys() - set(of_head))),
        long=encoded.cut,
        lost=encoded.lost,
        misaligned=one.problems.misaligned,
        overlapping=one.problems.overlapping,
        empty=one.problems.empty,
        unnamed=dict(one.problems.unnamed),
        shown=dict(one.problems.shown),
    )


def _labels(examples: Sequence[Example]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for example in examples:
        if isinstance(example, ClassExample):
            counts[example.label] += 1
        elif isinstance(example, TaggedText):
            counts.update(kind for kind, _, _ in example.spans)
    return counts


def _key(example: Example) -> str:
    """The text without regard to case and white space."""
    text = f"{example.first}\n{example.second}" if isinstance(example, PairExample) else example.text
    return " ".join(text.casefold().split())
