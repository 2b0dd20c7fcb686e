"""How good a model is on labelled data: one evaluation for each task, as the product answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.errors import InputError, ModelError, TagdexError
from indexer.model import TextModel
from indexer.training import metrics
from indexer.training.bootstrap import Measure
from indexer.training.calibration import abstention_curve, fit_temperature, reliability, softmax
from indexer.training.data import Retrieval, TaggedText
from indexer.training.encoded import UNKNOWN, encode
from indexer.training.plots import confusion, reliability_diagram
from indexer.training.scoring import class_logits, cosines, predict_spans, text_classes, unit
from indexer.training.sets import ClassExample, Example, PairExample
from indexer.training.settings import DataSettings

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

DEPTH = 100


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one model did on one data set.

    - `measures`: the scores that are compared, each over texts, pairs or queries.
    - `details`: everything else, as JSON can hold it.
    - `table`: scores by label or type, with the names of the columns first.
    - `pictures`: SVG by file name.
    """

    task: str
    measures: list[Measure]
    details: dict[str, Any]
    table: list[tuple[Any, ...]] = field(default_factory=list)
    pictures: dict[str, str] = field(default_factory=dict)


def evaluate(model: TextModel, settings: DataSettings, examples: Sequence[Example]) -> Evaluation:
    """Evaluate class, tags or similarity. Raises `ModelError` where the model has no head for it."""
    if not examples:
        raise InputError("there is nothing to evaluate on", source=settings.title)
    if settings.task == "class":
        return evaluate_classes(model, settings, [e for e in examples if isinstance(e, ClassExample)])
    if settings.task == "tags":
        return evaluate_tags(model, settings, [e for e in examples if isinstance(e, TaggedText)])
    return evaluate_pairs(model, settings, [e for e in examples if isinstance(e, PairExample)])


def evaluate_classes(model: TextModel, settings: DataSettings, examples: Sequence[ClassExample]) -> Evaluation:
    """Accuracy and macro-F1 of the best class, whatever the threshold; calibration and abstention beside them.

    The fitted temperature is that of all texts; its calibration error is measured on each half of the texts with the
    temperature of the other, so that it is not flattered.
    """
    if model.class_labels is None:
        raise ModelError(f"model {model.name} has no class head")
    labels = list(model.class_labels)
    encoded = encode(settings, examples, model)
    gold = text_classes(encoded)
    unknown = sorted({e.label for e in examples} - set(labels))
    everything = [*labels, *unknown]
    number = {label: index for index, label in enumerate(everything)}
    named = np.array([number[example.label] for example in examples], dtype=np.int64)
    logits = class_logits(model, encoded)
    predicted = logits.argmax(axis=1)
    right = predicted == gold
    scores = softmax(logits / model.config.class_temperature)
    confidence = scores.max(axis=1)
    known = gold != UNKNOWN
    details: dict[str, Any] = {
        "texts": len(examples),
        "unknown_labels": unknown,
        "ece": metrics.expected_calibration_error(confidence, right),
        "temperature": model.config.class_temperature,
        "threshold": model.config.class_threshold,
        "answered": float((confidence >= model.config.class_threshold).mean()),
        "abstention": [asdict(row) for row in abstention_curve(confidence, right)],
    }
    if known.sum() >= 2:
        details["fitted_temperature"] = fit_temperature(logits[known], gold[known])
        details["fitted_ece"] = _fitted_error(logits[known], gold[known])
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(counts, (gold[known], predicted[known]), 1)
    details["confusion"] = {"labels": labels, "counts": counts.tolist()}
    by_label = label_scores(named, predicted, classes=len(everything))
    table: list[tuple[Any, ...]] = [("label", "precision", "recall", "F1", "texts")]
    table += [
        (label, *(float(value) for value in row[:3]), int(row[3]))
        for label, row in zip(everything, by_label, strict=True)
    ]
    return Evaluation(
        task="class",
        measures=[
            Measure("accuracy", len(gold), lambda rows: float(right[rows].mean())),
            Measure(
                "macro-F1", len(named), lambda rows: macro_f1(named[rows], predicted[rows], classes=len(everything))
            ),
        ],
        details=details,
        table=table,
        pictures={
            "confusion.svg": confusion(labels, counts.tolist()),
            "reliability.svg": reliability_diagram(reliability(confidence, right), title=f"ECE {details['ece']:.4f}"),
        },
    )


def label_scores(gold: Ints, predicted: Ints, *, classes: int) -> Floats:
    """Precision, recall, F1 and number of texts of each class: (classes, 4); 0 where a divisor is 0.

    Both are numbers from 0; classes that the model does not know have numbers of their own, which it never predicts.
    """
    right = np.bincount(gold[gold == predicted], minlength=classes)
    wanted, found = np.bincount(gold, minlength=classes), np.bincount(predicted, minlength=classes)
    with np.errstate(invalid="ignore", divide="ignore"):
        rows = np.stack(
            [right / found, right / wanted, 2 * right / (found + wanted), wanted.astype(np.float64)], axis=1
        )
    result: Floats = np.nan_to_num(rows)
    return result


def macro_f1(gold: Ints, predicted: Ints, *, classes: int) -> float:
    """Mean F1 over the classes that stand in the gold standard, 0 for those that the model does not know."""
    rows = label_scores(gold, predicted, classes=classes)
    there = rows[:, 3] > 0
    return float(rows[there, 2].mean()) if there.any() else float("nan")


def _fitted_error(logits: Floats, gold: Ints) -> float:
    confidence, halves = np.zeros(len(gold)), np.arange(len(gold)) % 2
    for half in (0, 1):
        inside = halves == half
        temperature = fit_temperature(logits[~inside], gold[~inside])
        confidence[inside] = softmax(logits[inside] / temperature).max(axis=1)
    return metrics.expected_calibration_error(confidence, logits.argmax(axis=1) == gold)


def evaluate_tags(model: TextModel, settings: DataSettings, examples: Sequence[TaggedText]) -> Evaluation:
    """Strict span scores: type, start and end must all be right."""
    if model.entity_types is None:
        raise ModelError(f"model {model.name} has no tag head")
    gold = [example.spans for example in examples]
    found = predict_spans(model, encode(settings, examples, model))
    counts = np.array(
        [(len(set(a) & set(b)), len(set(a)), len(set(b))) for a, b in zip(gold, found, strict=True)], dtype=np.int64
    )
    scores = metrics.span_scores(gold, found)

    def part(rows: Ints, above: int, below: tuple[int, ...]) -> float:
        sums = counts[rows].sum(axis=0)
        divisor = sum(int(sums[column]) for column in below)
        return len(below) * float(sums[above]) / divisor if divisor else 0.0

    return Evaluation(
        task="tags",
        measures=[
            Measure("F1", len(counts), lambda rows: part(rows, 0, (1, 2))),
            Measure("precision", len(counts), lambda rows: part(rows, 0, (2,))),
            Measure("recall", len(counts), lambda rows: part(rows, 0, (1,))),
        ],
        details={
            "texts": len(examples),
            "unknown_labels": sorted({kind for spans in gold for kind, _, _ in spans} - set(model.entity_types)),
        },
        table=[
            ("type", "precision", "recall", "F1", "spans"),
            *((kind, s.precision, s.recall, s.f1, s.support) for kind, s in scores.items() if kind != "micro"),
        ],
    )


def evaluate_pairs(model: TextModel, settings: DataSettings, examples: Sequence[PairExample]) -> Evaluation:
    """Spearman of cosine and score; for pairs without scores, retrieval of `second` for `first` among all of them."""
    if settings.form != "scores":
        texts = sorted({text for pair in examples for text in (pair.second, pair.negative) if text is not None})
        number = {text: str(index) for index, text in enumerate(texts)}
        return evaluate_retrieval(
            model,
            Retrieval(
                {number[text]: text for text in texts},
                {str(index): pair.first for index, pair in enumerate(examples)},
                {str(index): {number[pair.second]: 1.0} for index, pair in enumerate(examples)},
            ),
        )
    found, scores = cosines(model, examples), np.array([pair.score for pair in examples], dtype=np.float64)
    return Evaluation(
        task="similarity",
        measures=[Measure("Spearman", len(scores), lambda rows: metrics.spearman(found[rows], scores[rows]))],
        details={"pairs": len(scores)},
    )


def evaluate_retrieval(model: TextModel, data: Retrieval, *, depth: int = DEPTH) -> Evaluation:
    """nDCG@10 and recall@100 of exact cosine search over all documents, by ir_measures.

    Raises `TagdexError` where ir_measures is not installed.
    """
    try:
        import ir_measures
        from ir_measures import R, nDCG
    except ImportError as error:
        raise TagdexError("retrieval needs ir_measures: pip install 'tagdex[eval]'") from error
    if not data.queries or not data.documents:
        raise InputError(f"{len(data.queries)} queries and {len(data.documents)} documents: there is nothing to find")
    names = list(data.documents)
    table = unit(model.encode(list(data.documents.values()))).astype(np.float32)
    queries = unit(model.encode(list(data.queries.values()))).astype(np.float32)
    run: dict[str, dict[str, float]] = {}
    for name, query in zip(data.queries, queries, strict=True):
        scores = table @ query
        best = np.argsort(-scores, kind="stable")[:depth]
        # Ranks as scores: trec_eval sorts equal scores by falling id, which is no order of ours.
        run[name] = {names[index]: float(depth - rank) for rank, index in enumerate(best)}
    relevant = {query: {d: int(grade) for d, grade in found.items()} for query, found in data.relevant.items()}
    values: dict[str, dict[str, float]] = {"nDCG@10": {}, "R@100": {}}
    for metric in ir_measures.iter_calc([nDCG @ 10, R @ 100], relevant, run):
        values[str(metric.measure)][metric.query_id] = float(metric.value)
    columns = {name: np.array([found.get(query, 0.0) for query in data.queries]) for name, found in values.items()}

    def mean(column: Floats) -> Any:
        return lambda rows: float(column[rows].mean())

    return Evaluation(
        task="retrieval",
        measures=[Measure(name, len(column), mean(column)) for name, column in columns.items()],
        details={"queries": len(data.queries), "documents": len(data.documents)},
    )


def write_pictures(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write the pictures into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, picture in evaluation.pictures.items():
        (folder / name).write_text(picture, encoding="utf-8")
        paths.append(folder / name)
    return paths
