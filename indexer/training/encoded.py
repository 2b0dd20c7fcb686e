"""Examples → windows of tokens with their targets, cut exactly as the model cuts what it analyses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer import iob
from indexer.model import TextModel, Window
from indexer.training.data import TaggedText
from indexer.training.sets import ClassExample, Example, PairExample
from indexer.training.settings import DataSettings
from indexer.words import Words

Ints = npt.NDArray[np.int64]

UNKNOWN = -1  # class of a text whose label the model does not know


@dataclass(frozen=True, slots=True)
class Encoded:
    """A set ready for the model.

    - `windows`: all windows; `Window.text` is the number of the text in `texts`.
    - `rows`: the windows of each unit of training: one window for class and tags, the windows of the texts of a pair.
    - `classes`: the class of each window, int64 (windows,), or None.
    - `words`: the words of each window, or None; `labels`: of each window the label of each of its words, or None.
    - `scores`: of each pair, fp32 (rows,), or None. `keys`: of each pair its texts' numbers among distinct ones.
    - `cut`: texts longer than one window; `lost`: spans that such a cut went through.
    """

    settings: DataSettings
    texts: list[str]
    windows: list[Window]
    rows: list[tuple[int, ...]]
    classes: Ints | None = None
    words: list[Words] | None = None
    labels: list[Ints] | None = None
    scores: npt.NDArray[np.float32] | None = None
    keys: list[tuple[int, ...]] | None = None
    cut: int = 0
    lost: int = 0

    @property
    def title(self) -> str:
        """Its name in the log."""
        return self.settings.title

    @property
    def task(self) -> str:
        """class, tags or similarity."""
        return self.settings.task

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each row, its texts padded to the same length."""
        return tuple(len(row) * max(len(self.windows[window].ids) for window in row) for row in self.rows)


def encode(settings: DataSettings, examples: Sequence[Example], model: TextModel) -> Encoded:
    """Windows and targets of examples, for the labels that the model's heads have.

    A text longer than one window gives several to class and tags; of a pair only the first window of each text is
    trained on, which `cut` counts.
    """
    if settings.task == "class":
        return _encode_classes(settings, [e for e in examples if isinstance(e, ClassExample)], model)
    if settings.task == "tags":
        return _encode_tags(settings, [e for e in examples if isinstance(e, TaggedText)], model)
    return _encode_pairs(settings, [e for e in examples if isinstance(e, PairExample)], model)


def _encode_classes(settings: DataSettings, examples: Sequence[ClassExample], model: TextModel) -> Encoded:
    texts = [example.text for example in examples]
    windows = model.windows(texts)
    ids = {name: index for index, name in enumerate(model.class_labels or ())}
    classes = np.array([ids.get(examples[window.text].label, UNKNOWN) for window in windows], dtype=np.int64)
    rows: list[tuple[int, ...]] = [(index,) for index in range(len(windows))]
    return Encoded(settings, texts, windows, rows, classes=classes, cut=_cut(windows))


def _encode_tags(settings: DataSettings, examples: Sequence[TaggedText], model: TextModel) -> Encoded:
    texts = [example.text for example in examples]
    windows = model.windows(texts)
    types = {name: index for index, name in enumerate(model.entity_types or ())}
    words, labels, found = [], [], 0
    for window in windows:
        inside = [
            (types[kind], start - window.start, end - window.start)
            for kind, start, end in examples[window.text].spans
            if kind in types and window.start <= start and end <= window.end
        ]
        found += len(inside)
        cut = model.words(window, texts[window.text][window.start : window.end])
        words.append(cut)
        labels.append(np.where(cut.known, iob.labels_of_spans(inside, cut.offsets), iob.IGNORED))
    known = sum(kind in types for example in examples for kind, _, _ in example.spans)
    rows: list[tuple[int, ...]] = [(index,) for index in range(len(windows))]
    return Encoded(
        settings,
        texts,
        windows,
        rows,
        words=words,
        labels=labels,
        cut=_cut(windows),
        lost=known - found,
    )


def _encode_pairs(settings: DataSettings, examples: Sequence[PairExample], model: TextModel) -> Encoded:
    numbers: dict[str, int] = {}
    keys = [
        tuple(
            numbers.setdefault(text, len(numbers))
            for text in (example.first, example.second, example.negative)
            if text is not None
        )
        for example in examples
    ]
    texts = list(numbers)
    windows = model.windows(texts)
    first: dict[int, int] = {}
    for index, window in enumerate(windows):
        first.setdefault(window.text, index)
    scores = None
    if settings.form == "scores":
        scores = np.array([example.score for example in examples], dtype=np.float32)
    return Encoded(
        settings,
        texts,
        windows,
        [tuple(first[number] for number in row) for row in keys],
        scores=scores,
        keys=keys,
        cut=_cut(windows),
    )


def _cut(windows: Sequence[Window]) -> int:
    counts = np.bincount([window.text for window in windows]) if windows else np.zeros(0, dtype=np.int64)
    return int((counts > 1).sum())
