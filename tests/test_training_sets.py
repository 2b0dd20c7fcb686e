"""A user's own files: what is read from each format, and what is said about what cannot be used."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from indexer.errors import InputError
from indexer.training.data import TaggedText
from indexer.training.sets import ClassExample, PairExample, SpanProblems, read_examples, read_set
from indexer.training.settings import DataSettings


def examples(folder: Path, name: str, content: str, **keys: Any) -> list[Any]:
    (folder / name).write_text(content, encoding="utf-8")
    return list(read_examples(DataSettings(path=name, **keys), folder / name))


@pytest.mark.parametrize(
    ("name", "content", "keys"),
    [
        ("a.csv", 'text,label\n"one, two",x\n', {}),
        ("a.tsv", "text\tlabel\none, two\tx\n", {}),
        ("a.tsv", "x\tone, two\n", {"header": False, "text": 1, "label": 0}),
        ("a.csv", 'q,intent\n"one, two",x\n', {"text": "q", "label": "intent"}),
        ("a.jsonl", '{"text": "one, two", "label": "x"}\n\n', {}),
        ("a.data", "text,label\n" + '"one, two",x', {"format": "csv"}),
    ],
)
def test_classes(tmp_path: Path, name: str, content: str, keys: dict[str, Any]) -> None:
    assert examples(tmp_path, name, content, task="class", **keys) == [ClassExample("one, two", "x")]


def test_compressed_files_and_numbers_as_labels(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(b'{"text": "one", "label": 3}\n'))
    found = read_examples(DataSettings(task="class", path="x"), tmp_path / "a.jsonl.xz")
    assert found == [ClassExample("one", "3")]


def test_quotes_are_characters_without_quoting(tmp_path: Path) -> None:
    found = examples(tmp_path, "a.tsv", 'text\tlabel\n"one\tx\n', task="class", quoting=False)
    assert found == [ClassExample('"one', "x")]


@pytest.mark.parametrize(
    "tags",
    [("I-PER", "I-PER", "O", "I-LOC"), ("B-PER", "I-PER", "O", "B-LOC"), ("B-PER", "E-PER", "O", "S-LOC")],
    ids=["IOB1", "IOB2", "IOBES"],
)
def test_conll_columns(tmp_path: Path, tags: tuple[str, ...]) -> None:
    wanted = [TaggedText("Ada Lovelace saw Rome", (("PER", 0, 12), ("LOC", 17, 21)))]
    words = ("Ada", "Lovelace", "saw", "Rome")
    content = "".join(f"{word}\t{tag}\n" for word, tag in zip(words, tags, strict=True))
    assert examples(tmp_path, "a.conll", content, task="tags") == wanted
    content = "".join(f"{word} NNP {tag}\n" for word, tag in zip(words, tags, strict=True))
    assert examples(tmp_path, "b.conll", content, task="tags", separator="space", tags=2) == wanted


def test_spans_and_tokens_in_json(tmp_path: Path) -> None:
    wanted = [TaggedText("Ada saw Rome", (("PER", 0, 3), ("LOC", 8, 12)))]
    for record in (
        {"text": "Ada saw Rome", "entities": [[8, 12, "LOC"], {"start": 0, "end": 3, "label": "PER"}]},
        {"tokens": ["Ada", "saw", "Rome"], "ner_tags": ["B-PER", "O", "B-LOC"]},
        {"tokens": ["Ada", "saw", "Rome"], "ner_tags": [1, 0, 2]},
    ):
        names = ("O", "B-PER", "B-LOC")
        assert examples(tmp_path, "a.jsonl", json.dumps(record), task="tags", tag_names=names) == wanted


def test_types_are_renamed_and_dropped(tmp_path: Path) -> None:
    content = json.dumps({"text": "Ada saw Rome", "entities": [[0, 3, "person"], [8, 12, "city"]]})
    found = examples(tmp_path, "a.jsonl", content, task="tags", types={"person": "PER"})
    assert found == [TaggedText("Ada saw Rome", (("PER", 0, 3),))]


SPOILED = {"text": "Ada saw Rome", "entities": [[0, 2, "PER"], [1, 7, "X"], [4, 4, "X"], [8, 99, "X"]]}


@pytest.mark.parametrize(
    ("choice", "spans", "counts"),
    [("expand", (("PER", 0, 3),), (2, 1, 2)), ("drop", (), (2, 0, 2))],
)
def test_what_becomes_of_spans_that_are_not_whole_words(
    tmp_path: Path, choice: str, spans: tuple[Any, ...], counts: tuple[int, int, int]
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(SPOILED))
    problems = SpanProblems()
    settings = DataSettings(task="tags", path="a.jsonl", on_misaligned=choice)
    assert read_examples(settings, tmp_path / "a.jsonl", problems=problems) == [TaggedText("Ada saw Rome", spans)]
    assert (problems.misaligned, problems.overlapping, problems.empty) == counts
    assert problems.shown["misaligned"].endswith("a.jsonl, line 1: PER from 0 to 2 in 'Ada saw Rome'")


def test_such_spans_are_an_error_otherwise(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.jsonl, line 1: the span PER from 0 to 2 in 'Ada saw Rome' is misaligned"):
        examples(tmp_path, "a.jsonl", json.dumps(SPOILED), task="tags")


def test_pairs(tmp_path: Path) -> None:
    found = examples(tmp_path, "a.csv", "first,second,score\na,b,2.5\n", task="similarity")
    assert found == [PairExample("a", "b", 2.5)]
    record = json.dumps({"title": "a", "body": "b", "negative": "c"})
    keys = {"task": "similarity", "first": "title", "second": "body"}
    assert examples(tmp_path, "a.jsonl", record, form="pairs", **keys) == [PairExample("a", "b")]
    assert examples(tmp_path, "a.jsonl", record, form="triples", **keys) == [PairExample("a", "b", None, "c")]


@pytest.mark.parametrize(
    ("name", "content", "keys", "message"),
    [
        (
            "a.csv",
            "text,topic\na,b\n",
            {"task": "class"},
            "a.csv, line 2, field 'label': there is no such column, only",
        ),
        ("a.csv", "text,label\n ,b\n", {"task": "class"}, "a.csv, line 2, field 'text': a text is missing, got ' '"),
        ("a.jsonl", "{", {"task": "class"}, "a.jsonl, line 1: not JSON"),
        ("a.jsonl", "[1]", {"task": "class"}, "a.jsonl, line 1: expected a JSON object"),
        ("a.xml", "", {"task": "class"}, "a.xml: the suffix says no format: set format to csv, tsv, jsonl or conll"),
        ("a.csv", "", {"task": "tags"}, "a.csv: format csv has no spans: tags need jsonl or conll"),
        ("a.conll", "", {"task": "class"}, "a.conll: format conll is for tags, not for class"),
        ("a.conll", "Ada\n", {"task": "tags"}, "a.conll, line 1: expected 2 columns, got 1"),
        ("a.conll", "Ada\tPER\n", {"task": "tags"}, "'PER' is no tag"),
        ("a.jsonl", '{"text": "a"}', {"task": "tags"}, "neither 'entities' (spans) nor 'tokens' (tokens) is there"),
        ("a.jsonl", '{"tokens": ["a"], "ner_tags": []}', {"task": "tags"}, "1 tokens, but 0 tags"),
        (
            "a.jsonl",
            '{"tokens": ["a"], "ner_tags": [1]}',
            {"task": "tags"},
            "the tags are numbers: name them in tag_na",
        ),
        ("a.csv", "first,second,score\na,b,high\n", {"task": "similarity"}, "field 'score': 'high' is no number"),
        ("a.csv", "text,label\na,b\n", {"task": "class", "encoding": "utf-9"}, "unknown encoding 'utf-9'"),
    ],
)
def test_errors_name_the_place(tmp_path: Path, name: str, content: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as raised:
        examples(tmp_path, name, content, **keys)
    assert message in str(raised.value)


def test_a_share_is_held_out_by_the_seed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"t{n},x\n" for n in range(50)))
    settings = DataSettings(task="class", path="a.csv", dev=0.2)
    first, again, other = (read_set(settings, root=tmp_path, seed=seed) for seed in (1, 1, 2))
    assert (len(first.train), len(first.dev)) == (40, 10)
    assert first.dev == again.dev != other.dev
    assert {e.text for e in (*first.train, *first.dev)} == {f"t{n}" for n in range(50)}  # type: ignore[union-attr]


def test_paths_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,b\n")
    settings = DataSettings(task="class", path="$TAGDEX_TEST_SETS/a.csv")
    with pytest.raises(InputError, match=r"\$TAGDEX_TEST_SETS/a\.csv: this variable of the environment is not set"):
        read_set(settings, root=Path("/"), seed=0)
    monkeypatch.setenv("TAGDEX_TEST_SETS", str(tmp_path))
    assert read_set(settings, root=Path("/"), seed=0).train == [ClassExample("a", "b")]
