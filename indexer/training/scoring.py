"""Dev scores: predictions of a set, decoded as the product decodes them, and the number that stands for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from indexer.batches import plan_batches
from indexer.heads import Outputs
from indexer.model import UNMASKED, TextModel
from indexer.training import metrics
from indexer.training.encoded import Encoded
from indexer.training.sets import DataSet, PairExample
from indexer.training.states import States, head_outputs

Floats = npt.NDArray[np.float64]
Spans = list[list[tuple[str, int, int]]]

_TIE = 1e-6  # cosines of fp32 embeddings, which differ in the last digits by the batch that a text was in


@dataclass(frozen=True, slots=True)
class DevSet:
    """A set to measure on, its states where the backbone is frozen, and the spans that its texts have."""

    data: DataSet
    encoded: Encoded
    states: States | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """One number for each set, and their weighted mean: the mean over a task's sets first, then over tasks."""

    sets: dict[str, float]
    tasks: dict[str, float]
    mean: float
    details: dict[str, dict[str, float]] = field(default_factory=dict)


def forward(
    model: TextModel, encoded: Encoded, windows: Sequence[int], states: States | None, *, embedding: bool = False
) -> Outputs:
    """One batch of windows through the model, or through a head alone where there are states."""
    if states is not None:
        return head_outputs(model, encoded, states, windows)
    ids, mask = model.pad([encoded.windows[index] for index in windows])
    words = None if encoded.words is None else model.pad_words([encoded.words[index] for index in windows])
    outputs: Outputs = model.model(
        ids,
        mask,
        words=words,
        embedding=embedding or encoded.task == "similarity",
        classes=encoded.task == "class",
        tags=encoded.task == "tags",
    )
    return outputs


def score_sets(model: TextModel, sets: Sequence[DevSet], *, weights: Mapping[str, float] | None = None) -> Scores:
    """Score each set: accuracy for class, strict micro-F1 of spans for tags, Spearman or nDCG@10 for pairs.

    `weights` by task, 1 for each that they do not name. NaN, as for predictions that are all alike, counts as 0.
    """
    model.model.eval()
    found = {dev.data.title: score_set(model, dev) for dev in sets}
    tasks: dict[str, list[float]] = {}
    for dev in sets:
        value = found[dev.data.title]
        tasks.setdefault(dev.data.task, []).append(0.0 if np.isnan(value) else value)
    by_task = {task: float(np.mean(values)) for task, values in tasks.items()}
    share = {task: 1.0 if weights is None else weights.get(task, 1.0) for task in by_task}
    total = sum(share.values())
    mean = sum(share[task] * value for task, value in by_task.items()) / total if total else 0.0
    return Scores(found, by_task, mean)


def score_set(model: TextModel, dev: DevSet) -> float:
    """One number for one set; see `score_sets`."""
    if dev.data.task == "class":
        gold = text_classes(dev.encoded)
        return metrics.accuracy(gold, class_logits(model, dev.encoded, dev.states).argmax(axis=1))
    if dev.data.task == "tags":
        gold_spans = [example.spans for example in dev.data.dev]  # type: ignore[union-attr]
        return metrics.span_scores(gold_spans, predict_spans(model, dev.encoded, dev.states))["micro"].f1
    return score_pairs(model, [e for e in dev.data.dev if isinstance(e, PairExample)], form=dev.data.settings.form)


def score_pairs(model: TextModel, pairs: Sequence[PairExample], *, form: str) -> float:
    """Spearman of cosines and scores; without scores nDCG@10 of finding `second` for `first` among all of the set.

    Texts with the same cosine share their mean rank, so that a model that tells nothing apart is not the best one.
    """
    if form == "scores":
        scores = np.array([pair.score for pair in pairs], dtype=np.float64)
        return metrics.spearman(cosines(model, pairs), scores)
    documents = sorted({text for pair in pairs for text in (pair.second, pair.negative) if text is not None})
    number = {text: index for index, text in enumerate(documents)}
    table = unit(model.encode(documents))
    queries = unit(model.encode([pair.first for pair in pairs]))
    values = []
    for query, pair in zip(queries, pairs, strict=True):
        found = table @ query
        wanted = found[number[pair.second]]
        better, alike = (found > wanted + _TIE).sum(), (np.abs(found - wanted) <= _TIE).sum()
        rank = better + (alike + 1) / 2
        values.append(1 / np.log2(rank + 1) if rank <= 10 else 0.0)
    return float(np.mean(values))


def cosines(model: TextModel, pairs: Sequence[PairExample]) -> Floats:
    """Cosine of the embeddings of each pair, fp64 (pairs,)."""
    first, second = (unit(model.encode([getattr(pair, side) for pair in pairs])) for side in ("first", "second"))
    result: Floats = (first * second).sum(axis=1)
    return result


def unit(vectors: npt.NDArray[np.float32]) -> Floats:
    """Rows of length 1, fp64."""
    wide = vectors.astype(np.float64)
    result: Floats = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return result


def text_classes(encoded: Encoded) -> npt.NDArray[np.int64]:
    """The class of each text, int64 (texts,)."""
    classes = np.zeros(len(encoded.texts), dtype=np.int64)
    if encoded.classes is not None:
        classes[[window.text for window in encoded.windows]] = encoded.classes
    return classes


def class_logits(model: TextModel, encoded: Encoded, states: States | None = None) -> Floats:
    """Logits of each text, fp64 (texts, classes): the token-weighted mean over its windows."""
    classes = len(model.class_labels or ())
    logits, tokens = np.zeros((len(encoded.texts), classes)), np.zeros(len(encoded.texts))

    def take(batch: Sequence[int], outputs: Outputs) -> None:
        if outputs.class_logits is None:
            return
        for row, index in zip(outputs.class_logits.float().cpu().numpy(), batch, strict=True):
            window = encoded.windows[index]
            logits[window.text] += len(window.ids) * row.astype(np.float64)
            tokens[window.text] += len(window.ids)

    _each_batch(model, encoded, states, take)
    return logits / tokens[:, None]


def predict_spans(model: TextModel, encoded: Encoded, states: States | None = None) -> Spans:
    """Spans of each text, in character offsets, sorted."""
    spans: Spans = [[] for _ in encoded.texts]

    def take(batch: Sequence[int], outputs: Outputs) -> None:
        if outputs.tag_logits is None or encoded.words is None:
            return
        decoded = model.decode(outputs.tag_logits.float().cpu().numpy(), [encoded.words[index] for index in batch])
        for window, found in zip([encoded.windows[index] for index in batch], decoded, strict=True):
            spans[window.text] += [(s.type, s.start + window.start, s.end + window.start) for s in found]

    _each_batch(model, encoded, states, take)
    return [sorted(found, key=lambda span: span[1:]) for found in spans]


def _each_batch(
    model: TextModel, encoded: Encoded, states: States | None, take: Callable[[Sequence[int], Outputs], None]
) -> None:
    lengths = [len(window.ids) for window in encoded.windows]
    padding = model.model.backbone.config.model_type not in UNMASKED
    model.model.eval()  # also where a phase has just ended: dropout has no place in an answer
    for batch in plan_batches(lengths, max_tokens=model.batch_tokens, padding=padding):
        with torch.inference_mode():
            outputs = forward(model, encoded, batch, states)
        take(batch, outputs)
