"""Evaluating models: exact values, seqeval and ir_measures as references, and what the command prints."""

from __future__ import annotations

import json
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from command_line import Run, assert_fails, assert_usage
from models import wordpiece
from training import save, with_both_heads, write_data

from indexer import iob
from indexer.errors import ModelError
from indexer.model import TextModel
from indexer.training.bootstrap import Measure, compare, interval
from indexer.training.calibration import abstention_curve, cross_entropy, fit_temperature, reliability, softmax
from indexer.training.data import Retrieval, TaggedText
from indexer.training.evaluation import evaluate, evaluate_retrieval, label_scores, macro_f1
from indexer.training.metrics import ndcg
from indexer.training.plots import confusion, curves, reliability_diagram, thinned
from indexer.training.results import Comparison
from indexer.training.scoring import score_pairs, unit
from indexer.training.sets import ClassExample, PairExample
from indexer.training.settings import DataSettings

TEXTS = ("ada met acme in london", "hello there", "the london", "paris and zurich met ada lovelace")


@pytest.fixture(scope="module")
def both() -> TextModel:
    return TextModel(with_both_heads(), device="cpu")


def test_classes_are_scored_as_the_model_answers(both: TextModel) -> None:
    answers = [analysis.label.name for analysis in both.analyse(TEXTS) if analysis.label]
    labels = list(both.class_labels or ())
    gold = [answers[0], *(labels[1 - labels.index(name)] for name in answers[1:2]), *answers[2:]]
    examples = [ClassExample(text, label) for text, label in zip(TEXTS, gold, strict=True)]
    found = evaluate(both, DataSettings(task="class", path="x"), examples)
    assert {m.name: m.value for m in found.measures}["accuracy"] == 0.75
    assert np.sum(found.details["confusion"]["counts"]) == 4
    assert np.trace(found.details["confusion"]["counts"]) == 3
    assert found.details["unknown_labels"] == []


def test_labels_that_the_model_does_not_know_are_named_and_wrong(both: TextModel) -> None:
    found = evaluate(both, DataSettings(task="class", path="x"), [ClassExample(text, "weather") for text in TEXTS])
    assert found.measures[0].value == 0.0
    assert found.details["unknown_labels"] == ["weather"]
    assert {m.name: m.value for m in found.measures}["macro-F1"] == 0.0
    assert found.table[-1] == ("weather", 0.0, 0.0, 0.0, 4)


def test_macro_f1_counts_every_class_that_the_model_does_not_know(both: TextModel) -> None:
    answers = [analysis.label.name for analysis in both.analyse(TEXTS) if analysis.label]
    examples = [ClassExample(text, answer) for text, answer in zip(TEXTS, answers, strict=True)]
    examples += [ClassExample("the london", label) for label in ("sports", "weather")]
    wrong = [analysis.label.name for analysis in both.analyse(["the london"]) if analysis.label] * 2
    gold, predicted = [example.label for example in examples], answers + wrong
    f1 = []
    for label in sorted(set(gold)):
        right = sum(g == p == label for g, p in zip(gold, predicted, strict=True))
        f1.append(2 * right / (gold.count(label) + predicted.count(label)))
    found = evaluate(both, DataSettings(task="class", path="x"), examples)
    assert {m.name: m.value for m in found.measures}["macro-F1"] == pytest.approx(np.mean(f1))


def test_spans_are_scored_as_seqeval_does(both: TextModel) -> None:
    seqeval = pytest.importorskip("seqeval.metrics")
    scheme = pytest.importorskip("seqeval.scheme")
    types = list(both.entity_types or ())
    predicted = [[(s.type, s.start, s.end) for s in a.spans] for a in both.analyse(TEXTS)]
    assert sum(map(len, predicted)) > 2
    gold = [list(spans) for spans in predicted]
    kind, start, end = next(spans for spans in gold if spans)[0]
    next(spans for spans in gold if spans)[0] = (types[1 - types.index(kind)], start, end)
    gold[-1] = gold[-1][:-1]
    examples = [TaggedText(text, tuple(spans)) for text, spans in zip(TEXTS, gold, strict=True)]
    found = evaluate(both, DataSettings(task="tags", path="x"), examples)

    def tags(rows: list[list[tuple[str, int, int]]]) -> list[list[str]]:
        names = iob.label_names(types)
        return [
            [
                names[i]
                for i in iob.labels_of_spans([(types.index(k), a, b) for k, a, b in spans], iob.split_words(text))
            ]
            for text, spans in zip(TEXTS, rows, strict=True)
        ]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = seqeval.classification_report(
            tags(gold), tags(predicted), scheme=scheme.IOB2, mode="strict", output_dict=True
        )
    values = {measure.name: measure.value for measure in found.measures}
    for ours, theirs in (("F1", "f1-score"), ("precision", "precision"), ("recall", "recall")):
        assert values[ours] == pytest.approx(report["micro avg"][theirs])
    for name, _, _, f1, support in found.table[1:]:
        assert (f1, support) == (pytest.approx(report[name]["f1-score"]), report[name]["support"])
    assert 0 < values["F1"] < 1


def test_pairs_are_scored_by_rank(both: TextModel) -> None:
    cosines = [both.similarity(TEXTS[0], text) for text in TEXTS]
    examples = [PairExample(TEXTS[0], text, score) for text, score in zip(TEXTS, cosines, strict=True)]
    found = evaluate(both, DataSettings(task="similarity", path="x"), examples)
    assert found.measures[0].value == pytest.approx(1.0)
    pairs = [PairExample(text, text) for text in TEXTS]
    found = evaluate(both, DataSettings(task="similarity", path="x", form="pairs"), pairs)
    assert {measure.name: measure.value for measure in found.measures} == {"nDCG@10": 1.0, "R@100": 1.0}


def test_retrieval_agrees_with_the_formula(both: TextModel) -> None:
    pytest.importorskip("ir_measures")
    generator = np.random.default_rng(0)
    words = ("hello", "there", "ada", "london", "paris", "acme", "met", "zurich")
    documents = {f"d{n}": " ".join(generator.choice(words, size=4)) for n in range(40)}
    queries = {f"q{n}": " ".join(generator.choice(words, size=2)) for n in range(6)}
    grades = (1.0, 2.0, 1.0, 1.0, 2.0)
    relevant = {
        query: {f"d{n}": grade for n, grade in zip(generator.permutation(40)[:5], grades, strict=True)}
        for query in queries
    }
    found = evaluate_retrieval(both, Retrieval(documents, queries, relevant))
    table, asked = unit(both.encode(list(documents.values()))), unit(both.encode(list(queries.values())))
    expected = []
    for name, query in zip(queries, asked, strict=True):
        order = np.argsort(-(table @ query).astype(np.float32), kind="stable")
        expected.append(ndcg([list(documents)[index] for index in order], relevant[name]))
    values = {measure.name: measure.value for measure in found.measures}
    assert values["nDCG@10"] == pytest.approx(np.mean(expected), abs=1e-4)
    assert values["R@100"] == 1.0


def test_a_model_without_the_head_is_refused() -> None:
    from models import tiny

    model = TextModel(tiny(wordpiece()), device="cpu")
    with pytest.raises(ModelError, match="has no class head"):
        evaluate(model, DataSettings(task="class", path="x"), [ClassExample("a", "b")])


def test_macro_f1_is_over_the_classes_that_are_there() -> None:
    gold, predicted = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    assert label_scores(gold, predicted, classes=3).tolist() == [
        [1.0, 0.5, pytest.approx(2 / 3), 2.0],
        [pytest.approx(2 / 3), 1.0, 0.8, 2.0],
        [0.0, 0.0, 0.0, 0.0],
    ]
    assert macro_f1(gold, predicted, classes=3) == pytest.approx((2 / 3 + 0.8) / 2)


def test_the_fitted_temperature_is_that_of_the_data() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(4000, 5)) * 2
    gold = np.array([random.choice(5, p=row) for row in softmax(logits)])
    assert fit_temperature(logits * 3, gold) == pytest.approx(3.0, rel=0.08)
    assert cross_entropy(np.log(np.array([[0.25, 0.75]])), np.array([1])) == pytest.approx(-np.log(0.75))


def test_abstaining_trades_answers_for_accuracy() -> None:
    curve = abstention_curve(np.array([0.2, 0.6, 0.9]), np.array([False, True, True]), steps=4)
    assert [(row.threshold, row.answered, row.accuracy) for row in curve] == [
        (0.0, 1.0, 2 / 3),
        (0.25, 2 / 3, 1.0),
        (0.5, 2 / 3, 1.0),
        (0.75, 1 / 3, 1.0),
    ]
    assert abstention_curve(np.array([0.1]), np.array([True]), steps=2)[1].accuracy is None


def test_bins_of_confidence() -> None:
    (low, high) = reliability(np.array([0.4, 0.9, 1.0]), np.array([True, True, False]), bins=2)
    assert (low.count, low.accuracy, high.count, high.accuracy) == (1, 1.0, 2, 0.5)
    assert high.confidence == pytest.approx(0.95)


def test_intervals_hold_the_value_and_pairs_cancel_what_they_share() -> None:
    random = np.random.default_rng(0)
    hard = random.normal(size=300)  # what makes a text hard is the same for both models
    first = Measure("mean", 300, lambda rows: float(hard[rows].mean()))
    second = Measure("mean", 300, lambda rows: float((hard + 0.01)[rows].mean()))
    found = interval(first)
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 / np.sqrt(300), rel=0.15)
    difference = compare(first, second)
    assert difference.low == pytest.approx(0.01) == difference.high
    with pytest.raises(ValueError, match="300 units of the first, but 2 of the second"):
        compare(first, Measure("mean", 2, lambda rows: 0.0 * len(rows)))


def test_no_star_without_an_interval(both: TextModel) -> None:
    settings = DataSettings(task="similarity", path="x")
    found = [evaluate(both, settings, [PairExample(text, TEXTS[0], score=3.0) for text in TEXTS]) for _ in range(2)]
    comparison = Comparison.of(["a", "b"], found)
    assert np.isnan(comparison.differences["Spearman"].low)
    assert "*" not in comparison.lines()[-1]
    apart = (
        Measure("mean", 30, lambda rows: float(rows.mean())),
        Measure("mean", 30, lambda rows: float(rows.mean() - 9)),
    )
    for pair in (apart, apart[::-1]):
        differences = {"mean": compare(*pair)}
        assert Comparison(("a", "b"), "class", {"texts": 30}, differences).lines()[-1].endswith("]  *")


def test_texts_that_are_all_alike_share_their_mean_rank(both: TextModel) -> None:
    assert np.ptp(unit(both.encode(["猫", "狗"])), axis=0).max() < 1e-6
    examples = [PairExample(first, second) for first, second in zip("猫狗山水红", "狗山水红猫", strict=True)]
    assert score_pairs(both, examples, form="pairs") == pytest.approx(1 / np.log2(3 + 1))


def test_draws_do_not_stand_in_memory_together() -> None:
    measure = Measure("mean", 50_000, lambda rows: float(rows.mean()))
    tracemalloc.start()
    interval(measure, resamples=100)  # 40 MB together
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_pictures_are_svg() -> None:
    import xml.etree.ElementTree as ElementTree

    events = [
        {"event": "step", "phase": phase, "step": step, "of": 900, "losses": {"a<b": 1 / step, "c": float("nan")}}
        for phase in (0, 1)
        for step in range(1, 901)
    ]
    events.append({"event": "scores", "phase": 1, "step": 900, "of": 900, "sets": {"a<b": 0.5}})
    picture = ElementTree.fromstring(curves(events))
    lines = [part for part in picture.iter() if part.tag.endswith("polyline")]
    assert len(lines) == 2
    assert 300 < len(lines[0].get("points", "").split()) <= 400
    assert thinned([(1, 2.0), (2, 4.0)]) == [(1, 2.0), (2, 4.0)]
    for text in (
        confusion(["a & b", "c"], [[3, 1], [0, 2]]),
        reliability_diagram(reliability(np.array([0.4, 0.9]), np.array([True, True])), title="ECE"),
    ):
        assert any(part.tag.endswith("title") for part in ElementTree.fromstring(text).iter())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_data(tmp_path)
    save(with_both_heads(), tmp_path / "first")
    return tmp_path


def test_the_command_prints_a_table_or_json_and_writes_pictures(folder: Path, run: Run) -> None:
    arguments = ("indexer", "evaluate", folder / "first", "--task", "class", "--data", folder / "classes.csv")
    result = run(*arguments, "--pictures", "pictures")
    assert result.code == 0
    assert result.out.startswith(f"{folder / 'first'}, class, 40 texts\naccuracy ")
    assert {path.name for path in Path("pictures").iterdir()} == {"confusion.svg", "reliability.svg"}
    (facts,) = run(*arguments, "--json").jsons
    assert facts["scores"]["accuracy"]["low"] <= facts["scores"]["accuracy"]["value"]
    assert sum(row["texts"] for row in facts["table"]) == 40


def test_two_models_side_by_side(folder: Path, run: Run) -> None:
    keys = [part for key in ("header=false", "first=0", "second=1", "score=2") for part in ("--key", key)]
    pair = ("--compare", folder / "first", folder / "first")
    arguments = ("indexer", "evaluate", *pair, "--task", "similarity", "--data", folder / "scores.tsv", *keys)
    (facts,) = run(*arguments, "--json").jsons
    assert facts["differences"]["Spearman"]["difference"] == 0.0
    assert "B − A" in run(*arguments).out


def test_what_the_command_refuses(folder: Path, run: Run) -> None:
    arguments = ("indexer", "evaluate", "--task", "class", "--data", "x.csv")
    assert_usage(run(*arguments), "give either MODEL or --compare A B")
    message = "--key: unknown key 'labl'; did you mean 'label'?"
    assert run(*arguments, "first", "--key", "labl=x").err.startswith(f"Error: {message}")
    message = "--key limit=1: limit is no part of how a file is read: all of --data is measured on"
    assert run(*arguments, "first", "--key", "limit=1").err.startswith(f"Error: {message}")
    result = run("indexer", "evaluate", "first", "--task", "retrieval", "--data", folder / "none")
    assert_fails(result, f"{folder / 'none' / 'corpus.jsonl.xz'}: No such file or directory")


def test_train_from_the_command_line(folder: Path, run: Run) -> None:
    (folder / "own.toml").write_text(
        f'output = "unused"\n[model]\nbase = "{folder / "first"}"\n[[data]]\ntask = "tags"\npath = "spans.jsonl"\n'
        'dev = 0.2\n[[phase]]\ntrain = "heads"\nepochs = 1\nbatch_size = 16\n'
    )
    look = run("indexer", "train", folder / "own.toml", "--dry-run")
    assert look.code == 0
    assert "spans (tags): 32 to train on, 8 to measure on" in look.out
    assert not Path("unused").exists()
    result = run("indexer", "train", folder / "own.toml", "--output", "out")
    assert (result.code, result.out.splitlines()[-1]) == (0, "out/model")
    assert "phase 1, step 2 of 2: spans (tags)" in result.err
    again = run("indexer", "train", folder / "own.toml", "--output", "out")
    assert again.out.splitlines()[0] == "out: this run had finished before; nothing is trained"
    assert json.loads(Path("out/scores.json").read_text())["sets"].keys() == {"spans (tags)"}
