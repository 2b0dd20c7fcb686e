"""What is said about the data before anything is trained, and what becomes of texts longer than a window."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import multi_task

from indexer import iob
from indexer.model import TextModel
from indexer.training.data import TaggedText
from indexer.training.encoded import encode
from indexer.training.keys import ConfigError
from indexer.training.report import data_report
from indexer.training.scoring import class_logits, predict_spans, text_classes
from indexer.training.sets import ClassExample, DataSet, PairExample, SpanProblems, read_set
from indexer.training.settings import DataSettings, ModelSettings
from indexer.training.start import start_model

LONG = " ".join(f"ada met london in paris {n}." for n in range(40))


HEADS = {"class": ("a", "b"), "tags": ("LOC", "PER")}


def model() -> TextModel:
    return TextModel(multi_task(class_labels=["a", "b"], entity_types=["LOC", "PER"], max_length=32), device="cpu")


def test_duplicates_contradictions_and_unknown_labels_are_counted(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\nhello,a\nHello ,b\nthere,b\nparis,b\n")
    (tmp_path / "dev.csv").write_text("text,label\n  THERE,b\nlondon,c\n")
    data = read_set(DataSettings(task="class", path="train.csv", dev="dev.csv"), root=tmp_path, seed=0)
    report = data_report([data], [encode(data.settings, data.train, model())], {"class": "new, 2 labels"}, HEADS)
    (found,) = report.sets
    assert found.labels == {"a": 1, "b": 3}
    assert (found.train, found.dev, found.shared, found.contradictions, found.unknown) == (4, 2, 1, 1, ("c",))
    lines = "\n".join(report.lines())
    for part in (
        "class head: new, 2 labels",
        "2 labels: b 3, a 1",
        "note: 1 dev examples also stand in the training part",
        "note: 1 texts stand there with two labels",
        "note: in dev, but not known to the head, and so never right: c",
    ):
        assert part in lines


def test_labels_of_dev_are_unknown_where_the_head_does_not_know_them(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\nhello,a\n")
    (tmp_path / "dev.csv").write_text("text,label\nthere,b\nlondon,c\n")
    both = DataSettings(task="class", path="train.csv", dev="dev.csv")
    for settings in (both, DataSettings(task="class", dev="dev.csv")):  # b is known, though nothing trains it
        data = read_set(settings, root=tmp_path, seed=0)
        (found,) = data_report([data], [encode(settings, data.train, model())], {}, HEADS).sets
        assert found.unknown == ("c",)


def test_types_that_are_not_named_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"text": "ada met bob in london", "entities": [[0, 3, "PER"], [15, 21, "LOC"]]}\n'
    )
    settings = DataSettings(task="tags", path="a.jsonl", types={"PER": "PER", "LCO": "LOC"})
    data = read_set(settings, root=tmp_path, seed=0)
    report = data_report([data], [encode(settings, data.train, model())], {}, HEADS)
    assert "  note: left out, as types does not name them: LOC 1" in report.lines()
    none = read_set(replace(settings, types={"PERSON": "PER"}), root=tmp_path, seed=0)
    with pytest.raises(ConfigError, match="hold no label at all; types does not name LOC, PER"):
        start_model(multi_task(), ModelSettings(), [none], seed=0)


def test_a_long_text_is_several_examples_of_its_class_and_one_answer() -> None:
    text_model = model()
    encoded = encode(
        DataSettings(task="class", path="x"), [ClassExample(LONG, "b"), ClassExample("ada", "a")], text_model
    )
    assert encoded.cut == 1
    assert len(encoded.rows) > 3
    assert encoded.classes is not None
    assert encoded.classes.tolist() == [1] * (len(encoded.rows) - 1) + [0]
    assert text_classes(encoded).tolist() == [1, 0]
    answers = class_logits(text_model, encoded).argmax(axis=1)
    labels = [analysis.label.name for analysis in text_model.analyse([LONG, "ada"]) if analysis.label]
    assert labels == [("a", "b")[answer] for answer in answers]


def test_spans_stand_on_the_right_words_of_every_window() -> None:
    text_model = model()
    spans = tuple(("PER", at, at + 3) for at in range(len(LONG)) if LONG.startswith("ada", at))
    encoded = encode(DataSettings(task="tags", path="x"), [TaggedText(LONG, spans)], text_model)
    assert encoded.labels is not None
    assert encoded.words is not None
    begins = iob.label_names(["LOC", "PER"]).index("B-PER")
    assert sum(int((labels == begins).sum()) for labels in encoded.labels) == len(spans) == 40
    for window, words, labels in zip(encoded.windows, encoded.words, encoded.labels, strict=True):
        piece = LONG[window.start : window.end]
        for start, end in np.array(words.offsets)[labels == begins]:
            assert piece[start:end] == "ada"
    product = [(s.type, s.start, s.end) for s in text_model.analyse([LONG])[0].spans]
    assert predict_spans(text_model, encoded) == [product]


def test_a_span_across_the_end_of_a_window_is_counted_as_lost() -> None:
    text_model = model()
    first, second = text_model.windows([LONG])[:2]
    spans = (("PER", first.end - 2, second.start + 3),)
    data = DataSet(DataSettings(task="tags", path="x"), [TaggedText(LONG, spans)], [], SpanProblems())
    encoded = encode(data.settings, data.train, text_model)
    (found,) = data_report([data], [encoded], {}, HEADS).sets
    assert (found.long, found.lost) == (1, 1)


def test_pairs_share_the_windows_of_equal_texts() -> None:
    pairs = [PairExample("ada", "paris", negative="met"), PairExample("ada", LONG, negative="met")]
    encoded = encode(DataSettings(task="similarity", path="x", form="triples"), pairs, model())
    assert encoded.texts == ["ada", "paris", "met", LONG]
    assert encoded.keys == [(0, 1, 2), (0, 3, 2)]
    assert encoded.rows == [(0, 1, 2), (0, 3, 2)]
    assert (encoded.cut, len(encoded.lengths)) == (1, 2)


def test_a_new_head_may_be_contextual_and_pooled(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nhello,x\nthere,y\n")
    data = read_set(DataSettings(task="class", path="a.csv"), root=tmp_path, seed=0)
    settings = ModelSettings(class_head="pooled", class_head_width=7, head_dropout=0.3)
    base = multi_task()
    begun = start_model(base, settings, [data], seed=0)
    config = begun.loaded.model.config
    assert (config.class_labels, config.class_head_width) == (["x", "y"], 7)
    assert begun.loaded.model.class_head.hidden.out_features == 7
    assert begun.loaded.model.tag_head is base.model.tag_head
    assert begun.loaded.fingerprint == base.fingerprint
    assert base.model.config.class_labels == ["sport", "science", "music"]
