"""A user's own data sets: CoNLL columns, JSON Lines, CSV and TSV → labelled texts, tagged texts and pairs."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from indexer import iob
from indexer.errors import InputError
from indexer.readers.delimited import count_of_cells, fields_of_any_size
from indexer.training import data
from indexer.training.data import TaggedText
from indexer.training.lines import DataError, half_character, numbered_objects, text_lines
from indexer.training.settings import DataSettings

SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".json": "jsonl", ".conll": "conll", ".iob2": "conll"}
_TYPE_NAMES = ("type", "label", "entity")


@dataclass(frozen=True, slots=True)
class ClassExample:
    """A text and the name of its class."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class PairExample:
    """Two texts that belong together or have a score, and perhaps a third that does not belong to the first."""

    first: str
    second: str
    score: float | None = None
    negative: str | None = None


Example = ClassExample | TaggedText | PairExample


@dataclass(slots=True)
class SpanProblems:
    """How many spans were not as they should be, and the first of each kind, in words.

    `unnamed`: spans of each type that `types` does not name, which are left out.
    """

    misaligned: int = 0
    overlapping: int = 0
    empty: int = 0
    shown: dict[str, str] = field(default_factory=dict)
    unnamed: Counter[str] = field(default_factory=Counter)

    def note(self, kind: str, description: str) -> None:
        """Count one."""
        setattr(self, kind, getattr(self, kind) + 1)
        self.shown.setdefault(kind, description)


@dataclass(frozen=True, slots=True)
class DataSet:
    """One [[data]] as read: examples to train on, and to measure on."""

    settings: DataSettings
    train: list[Example]
    dev: list[Example]
    problems: SpanProblems

    @property
    def title(self) -> str:
        """Its name in the log."""
        return self.settings.title

    @property
    def task(self) -> str:
        """class, tags or similarity."""
        return self.settings.task


def read_set(settings: DataSettings, *, root: Path, seed: int) -> DataSet:
    """Read the files of a data set. With a share as `dev`, that part of the examples is held out, by the seed.

    Raises `InputError` for a file that cannot be read as the settings say; it names the file and the line.
    """
    problems = SpanProblems()
    train: list[Example] = []
    for path in settings.paths:
        train += read_examples(settings, resolve(path, root), problems=problems)
    dev: list[Example] = []
    if isinstance(settings.dev, str):
        dev = read_examples(settings, resolve(settings.dev, root), problems=problems)
    elif settings.dev is not None:
        train, dev = held_out(train, share=settings.dev, seed=seed)
    if settings.limit is not None and len(train) > settings.limit:
        order = np.random.default_rng([seed, 1]).permutation(len(train))[: settings.limit]
        train = [train[index] for index in sorted(order)]
    if settings.paths and not train:
        raise InputError("there is no example to train on", source=", ".join(settings.paths))
    if settings.dev is not None and not dev:
        place = settings.dev if isinstance(settings.dev, str) else ", ".join(settings.paths)
        raise InputError("there is no example to measure on: give more, or leave out dev", source=place)
    return DataSet(settings, train, dev, problems)


def resolve(path: str, root: Path) -> Path:
    """A path of a configuration: $NAME is taken from the environment, a relative one starts from `root`."""
    expanded = os.path.expanduser(os.path.expandvars(path))
    if "$" in expanded:
        raise InputError("this variable of the environment is not set", source=path)
    return root / expanded


def held_out(examples: Sequence[Example], *, share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Examples to train on and held out, at least one each, both in their old order."""
    count = min(max(1, round(share * len(examples))), max(0, len(examples) - 1))
    chosen = set(np.random.default_rng([seed, 0]).permutation(len(examples))[:count].tolist())
    train = [example for index, example in enumerate(examples) if index not in chosen]
    return train, [examples[index] for index in sorted(chosen)]


def read_examples(settings: DataSettings, path: Path, *, problems: SpanProblems | None = None) -> list[Example]:
    """The examples of one file. Raises `InputError`."""
    problems = SpanProblems() if problems is None else problems
    kind = settings.format or SUFFIXES.get(Path(path.name.removesuffix(".xz")).suffix)
    if kind is None:
        raise InputError("the suffix says no format: set format to csv, tsv, jsonl or conll", source=str(path))
    readers: dict[str, Callable[[], Iterator[Example]]] = {
        "class": lambda: _class_examples(settings, path, kind),
        "tags": lambda: _tag_examples(settings, path, kind, problems),
        "similarity": lambda: _pair_examples(settings, path, kind),
    }
    return list(readers[settings.task]())


def _class_examples(settings: DataSettings, path: Path, kind: str) -> Iterator[Example]:
    for row in _rows(settings, path, kind):
        yield ClassExample(row.text(settings.text), row.text(settings.label, numbers=True))


def _pair_examples(settings: DataSettings, path: Path, kind: str) -> Iterator[Example]:
    for row in _rows(settings, path, kind):
        yield PairExample(
            row.text(settings.first),
            row.text(settings.second),
            score=row.number(settings.score) if settings.form == "scores" else None,
            negative=row.text(settings.negative) if settings.form == "triples" else None,
        )


def _tag_examples(settings: DataSettings, path: Path, kind: str, problems: SpanProblems) -> Iterator[Example]:
    if kind == "conll":
        yield from _columns(settings, path, problems)
        return
    if kind != "jsonl":
        raise InputError(f"format {kind} has no spans: tags need jsonl or conll", source=str(path))
    for row in _rows(settings, path, kind):
        if settings.entities in row.values:
            text = row.text(settings.text)
            spans = _given_spans(row, settings)
        elif str(settings.tokens) in row.values:
            tokens = [str(token) for token in row.items(settings.tokens)]
            tags = [_tag_name(tag, settings, row) for tag in row.items(settings.tags)]
            if len(tokens) != len(tags):
                raise row.error(f"{len(tokens)} tokens, but {len(tags)} tags")
            try:
                tokens, found = data.merge_handles(tokens, data.spans_of_tags(tags))
            except DataError as error:
                raise row.error(error.problem, settings.tags) from error
            text, offsets = data.join_tokens(tokens)
            spans = [(name, offsets[a][0], offsets[b - 1][1]) for name, a, b in found]
        else:
            raise row.error(f"neither '{settings.entities}' (spans) nor '{settings.tokens}' (tokens) is there")
        yield clean_spans(text, _renamed(spans, settings, problems), settings, problems=problems, place=row.place)


def _columns(settings: DataSettings, path: Path, problems: SpanProblems) -> Iterator[Example]:
    token, tag = (
        (0 if settings.tokens == "tokens" else settings.tokens),
        (1 if settings.tags == "ner_tags" else settings.tags),
    )
    if not isinstance(token, int) or not isinstance(tag, int):
        raise InputError("the columns of CoNLL files have numbers from 0: set tokens and tags", source=str(path))
    texts = data.read_columns(
        path, token=token, tag=tag, separator="\t" if settings.separator == "tab" else None, encoding=settings.encoding
    )
    for number, text in enumerate(texts, start=1):
        place = f"{path}, sentence {number}"
        yield clean_spans(text.text, _renamed(text.spans, settings, problems), settings, problems=problems, place=place)


def clean_spans(
    text: str, spans: Iterable[tuple[str, int, int]], settings: DataSettings, *, problems: SpanProblems, place: str
) -> TaggedText:
    """Spans sorted, without overlap, each from the start of a word to the end of one.

    `on_misaligned`: "error" raises `InputError` for any span that is not so; "expand" moves its ends to those of the
    words it touches; "drop" leaves it out. Of two that overlap, the one that starts first stays, or the longer one;
    empty ones go.
    """
    words = iob.split_words(text)
    kept: list[tuple[str, int, int]] = []
    for kind, start, end in sorted(spans, key=lambda span: (span[1], -span[2])):
        shown = f"{kind} from {start} to {end} in {text[:80]!r}"
        within = 0 <= start < end <= len(text)
        inside = [word for word in words if word[0] < end and word[1] > start] if within else []
        problem = "" if inside else "empty"
        if not problem:
            aligned = inside[0][0], inside[-1][1]
            if (start, end) != aligned:
                problem = "misaligned"
                if settings.on_misaligned == "expand":
                    problems.note(problem, f"{place}: {shown}")
                    (start, end), problem = aligned, ""
        if not problem and kept and start < kept[-1][2]:
            problem = "overlapping"
        if problem:
            if settings.on_misaligned == "error":
                what = f"is {problem}"
                if start < end and not within:
                    what = (
                        f"is not within its {len(text)} characters (offsets count code points, from 0, end exclusive)"
                    )
                raise InputError(
                    f'{place}: the span {shown} {what}; with on_misaligned = "expand" spans are widened to '
                    "whole "
                    'words, with "drop" left out'
                )
            problems.note(problem, f"{place}: {shown}")
            continue
        kept.append((kind, start, end))
    return TaggedText(text, tuple(kept))


def _given_spans(row: _Row, settings: DataSettings) -> list[tuple[str, int, int]]:
    spans = []
    for entry in row.items(settings.entities):
        if isinstance(entry, list) and len(entry) == 3:
            start, end, kind = entry
        elif isinstance(entry, Mapping):
            start, end = entry.get("start"), entry.get("end")
            kind = next((entry[name] for name in _TYPE_NAMES if name in entry), None)
        else:
            start = end = kind = None
        if not isinstance(start, int) or not isinstance(end, int) or not isinstance(kind, str):
            raise row.error(f"an entity must be {{start, end, type}} or [start, end, type], got {str(entry)[:80]}")
        spans.append((row.whole(kind, settings.entities), start, end))
    return spans


def _renamed(
    spans: Sequence[tuple[str, int, int]], settings: DataSettings, problems: SpanProblems
) -> list[tuple[str, int, int]]:
    if settings.types is None:
        return list(spans)
    problems.unnamed.update(kind for kind, _, _ in spans if kind not in settings.types)
    return [(settings.types[kind], a, b) for kind, a, b in spans if kind in settings.types]


def _tag_name(tag: object, settings: DataSettings, row: _Row) -> str:
    if isinstance(tag, str):
        return tag
    if settings.tag_names is None:
        raise row.error("the tags are numbers: name them in tag_names, in their order")
    if not isinstance(tag, int) or not 0 <= tag < len(settings.tag_names):
        raise row.error(f"tag {tag} has no name: tag_names has {len(settings.tag_names)}")
    return settings.tag_names[tag]


@dataclass(frozen=True, slots=True)
class _Row:
    """One record: its values by column, and where it stands."""

    values: Mapping[str, Any]
    path: Path
    line: int

    @property
    def place(self) -> str:
        return f"{self.path}, line {self.line}"

    def error(self, problem: str, column: str | int | None = None) -> InputError:
        return InputError(problem, source=str(self.path), line=self.line, field=None if column is None else str(column))

    def text(self, column: str | int, *, numbers: bool = False) -> str:
        value = self._value(column)
        if numbers and isinstance(value, int | bool):
            return str(value)
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"a text is missing, got {str(value)[:80]!r}", column)
        return self.whole(value, column)

    def whole(self, text: str, column: str | int) -> str:
        """The text, if all of its characters are."""
        if problem := half_character(text):
            raise self.error(problem, column)
        return text

    def number(self, column: str | int) -> float:
        value = self._value(column)
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise self.error(f"{str(value)[:80]!r} is no number", column) from error
        if not np.isfinite(number):
            raise self.error(f"{value!r} is not finite", column)
        return number

    def items(self, column: str | int) -> list[Any]:
        value = self._value(column)
        if not isinstance(value, list):
            raise self.error(f"a list is missing, got {str(value)[:80]!r}", column)
        return [self.whole(part, column) if isinstance(part, str) else part for part in value]

    def _value(self, column: str | int) -> Any:
        if str(column) not in self.values:
            raise self.error(f"there is no such column, only {', '.join(list(self.values)[:20])}", column)
        return self.values[str(column)]


def _rows(settings: DataSettings, path: Path, kind: str) -> Iterator[_Row]:
    if kind == "conll":
        raise InputError(f"format conll is for tags, not for {settings.task}", source=str(path))
    if kind == "jsonl":
        for number, values in numbered_objects(path, encoding=settings.encoding):
            yield _Row(values, path, number)
        return
    names: list[str] | None = None
    width: int | None = None
    for number, cells in _csv_rows(settings, path, kind):
        # Without a header, columns are numbers, and TSV is often ragged: the STS benchmark has more for some sources.
        if width is not None and len(cells) != width and (settings.header or kind == "csv"):
            raise InputError(
                f"this row has {count_of_cells(len(cells))}, the {'header' if settings.header else 'first row'} has "
                f"{count_of_cells(width)}: put quotes around a cell that holds the separator",
                source=str(path),
                line=number,
            )
        if width is None:
            width = len(cells)
            if settings.header:
                names = _header(cells, path, number)
                continue
        values = {str(index): cell for index, cell in enumerate(cells)}
        if names is not None:
            values |= dict(zip(names, cells, strict=True))
        yield _Row(values, path, number)


def _header(cells: list[str], path: Path, line: int) -> list[str]:
    for name in cells:
        if name.strip() and cells.count(name) > 1:
            raise InputError(f"two columns are named '{name}': rename one", source=str(path), line=line)
    return cells


def _csv_rows(settings: DataSettings, path: Path, kind: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row that is not empty, and the line that it begins in."""
    rows = csv.reader(
        (line for _, line in text_lines(path, encoding=settings.encoding, newline="")),
        delimiter="," if kind == "csv" else "\t",
        quoting=csv.QUOTE_MINIMAL if settings.quoting else csv.QUOTE_NONE,
        strict=True,
    )
    while True:
        begin = rows.line_num + 1
        try:
            with fields_of_any_size():
                cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"{error}: from the row that begins here on, quotes do not fit together; write a quote inside a quoted "
                "cell twice, or set quoting = false where quotes are characters of the text",
                source=str(path),
                line=begin,
            ) from error
        if cells:
            yield begin, cells
