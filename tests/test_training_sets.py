"""A user's own files: what is read from each format, and what is said about what cannot be used."""

from __future__ import annotations

import csv
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
        (
            "a.csv",
            "text,label\nParis, France,place\n",
            {"task": "class"},
            "a.csv, line 2: this row has 3 cells, the header has 2 cells: put quotes around a cell",
        ),
        ("a.csv", "text,label\na\n", {"task": "class"}, "a.csv, line 2: this row has 1 cell, the header has 2 cells"),
        (
            "a.csv",
            "a,x\na, b,x\n",
            {"task": "class", "header": False, "text": 0, "label": 1},
            "a.csv, line 2: this row has 3 cells, the first row has 2",
        ),
        (
            "a.csv",
            'label,text\nx,one\ny,"two\nx,three\nx,four\n',
            {"task": "class"},
            "a.csv, line 3: unexpected end of data: from the row that begins here on, quotes do not fit together",
        ),
        ("a.csv", 'label,text\nx,"a"b\n', {"task": "class"}, "a.csv, line 2: ',' expected after '\"'"),
        ("a.csv", "text,text,label\na,b,c\n", {"task": "class"}, "a.csv, line 1: two columns are named 'text'"),
        ("a.csv", 'text,label\n"a\nb\nc",\n', {"task": "class"}, "a.csv, line 2, field 'label': a text is missing"),
        (
            "a.jsonl",
            '{"text": "a\\ud800", "label": "x"}',
            {"task": "class"},
            "a.jsonl, line 1, field 'text': character 2 is \\ud800, half of a surrogate pair",
        ),
        ("a.jsonl", '{"text": "a", "label": "\\udc00"}', {"task": "class"}, "line 1, field 'label': character 1 is"),
        (
            "a.jsonl",
            '{"tokens": ["a\\ud800"], "ner_tags": ["O"]}',
            {"task": "tags"},
            "line 1, field 'tokens': character",
        ),
        (
            "a.jsonl",
            '{"text": "a", "entities": [[0, 1, "\\ud800"]]}',
            {"task": "tags"},
            "line 1, field 'entities': character 1",
        ),
        (
            "a.jsonl",
            '{"first": "a", "second": "b", "score": ' + "1" * 400 + "}",
            {"task": "similarity"},
            "a.jsonl, line 1, field 'score': '1111",
        ),
        (
            "a.jsonl",
            '{"tokens": ["a"], "ner_tags": ["O"]}\n{"tokens": ["a"], "ner_tags": ["PER"]}',
            {"task": "tags"},
            "a.jsonl, line 2, field 'ner_tags': 'PER' is no tag",
        ),
        ("a.conll", "Ada\tB-PER\n\nsaw\tO\nRome\tXX\n", {"task": "tags"}, "a.conll, line 4: 'XX' is no tag"),
        (
            "a.conll",
            "# text = Ada met\nAda\tB-PER\nwent\tO\n",
            {"task": "tags"},
            "a.conll, line 2: token 'went' is not at character 3",
        ),
    ],
)
def test_errors_name_the_place(tmp_path: Path, name: str, content: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as raised:
        examples(tmp_path, name, content, **keys)
    assert message in str(raised.value)


LONG = b"text,label\n" + b"one,x\n" * 3000  # more than a block, in which text is decoded


@pytest.mark.parametrize(
    ("name", "content", "keys", "message"),
    [
        ("a.csv", LONG + b"caf\xe9,x\n", {}, "a.csv, line 3002: not utf-8: invalid continuation byte; set encoding"),
        (
            "a.csv.xz",
            lzma.compress(LONG + b"\xe9,x\n"),
            {},
            "a.csv.xz, line 3002: not utf-8: invalid continuation byte",
        ),
        ("a.csv", LONG, {"encoding": "utf-16"}, "a.csv, line 1: not utf-16: UTF-16 stream does not start with BOM"),
        ("a.csv", LONG, {"encoding": "rot13"}, "a.csv: unknown encoding 'rot13'"),
        ("a.csv.xz", lzma.compress(LONG)[:-20], {}, "a.csv.xz, line 3002: the .xz file is damaged or cut short"),
        ("a.jsonl.xz", b"no xz", {}, "a.jsonl.xz, line 1: the .xz file is damaged or cut short"),
    ],
)
def test_damaged_files_name_the_place(
    tmp_path: Path, name: str, content: bytes, keys: dict[str, Any], message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as raised:
        read_examples(DataSettings(task="class", path=name, **keys), tmp_path / name)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "keys"),
    [
        ("a.csv", "label,text\nx,one\n", {}),
        ("a.csv", "x,one\n", {"header": False, "text": 1, "label": 0, "encoding": "UTF8"}),
        ("a.jsonl", '{"text": "one", "label": "x"}', {}),
    ],
)
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str, content: str, keys: dict[str, Any]) -> None:
    assert examples(tmp_path, name, "\ufeff" + content, task="class", **keys) == [ClassExample("one", "x")]


def test_a_byte_order_mark_is_no_token(tmp_path: Path) -> None:
    assert examples(tmp_path, "a.conll", "\ufeffAda\tB-PER\n", task="tags") == [TaggedText("Ada", (("PER", 0, 3),))]


def test_a_long_cell_is_read_and_the_limit_of_the_process_stays(tmp_path: Path) -> None:
    before, text = csv.field_size_limit(), "hello " * 30_000 + "hello"
    assert examples(tmp_path, "a.csv", f"text,label\n{text},x\n", task="class") == [ClassExample(text, "x")]
    assert csv.field_size_limit() == before


def test_rows_of_tsv_without_a_header_may_have_more_columns(tmp_path: Path) -> None:
    keys = {"task": "class", "header": False, "text": 1, "label": 0}
    found = examples(tmp_path, "a.tsv", "x\tone\ny\ttwo\tsource\n", **keys)
    assert found == [ClassExample("one", "x"), ClassExample("two", "y")]


def test_a_hash_sign_is_a_token_where_it_has_a_tag(tmp_path: Path) -> None:
    content = "# newdoc id = 1\n# newpar\n# O\n5 O\nLondon B-LOC\n\nAda B-PER\n# O\n"
    assert examples(tmp_path, "a.conll", content, task="tags", separator="space") == [
        TaggedText("#5 London", (("LOC", 3, 9),)),
        TaggedText("Ada #", (("PER", 0, 3),)),
    ]


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


def test_a_space_behind_a_tag_makes_no_other_type(tmp_path: Path) -> None:
    found = examples(tmp_path, "a.conll", "Ada\tB-PER \nLovelace\tI-PER\r\nran\tO \n", task="tags")
    assert found == [TaggedText("Ada Lovelace ran", (("PER", 0, 12),))]


def test_handles_in_two_tokens_are_one_word_in_every_format(tmp_path: Path) -> None:
    wanted = [TaggedText("RT @ann: hi", (("PER", 3, 7),))]
    tokens, tags = ["RT", "@", "ann", ":", "hi"], ["O", "O", "B-PER", "O", "O"]
    rows = "".join(f"{token}\t{tag}\n" for token, tag in zip(tokens, tags, strict=True))
    assert examples(tmp_path, "a.conll", rows, task="tags") == wanted
    row = json.dumps({"tokens": tokens, "ner_tags": tags})
    assert examples(tmp_path, "a.jsonl", row, task="tags") == wanted


@pytest.mark.parametrize(("start", "end"), [(0, 7), (-1, 3), (8, 9)])
def test_a_span_outside_its_text_is_told_what_offsets_are(tmp_path: Path, start: int, end: int) -> None:
    row = json.dumps({"text": "Zürich", "entities": [[start, end, "LOC"]]})
    message = r"is not within its 6 characters \(offsets count code points, from 0, end exclusive\)"
    with pytest.raises(InputError, match=message):
        examples(tmp_path, "a.jsonl", row, task="tags")


def test_columns_with_spaces_between_them_are_told_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 1: expected 2 columns, got 1: set separator = 'space'"):
        examples(tmp_path, "a.conll", "Ada B-PER\n", task="tags")


@pytest.mark.parametrize("dev", ["dev.csv", 0.5])
def test_a_dev_set_without_an_example_is_refused(tmp_path: Path, dev: str | float) -> None:
    (tmp_path / "train.csv").write_text("text,label\nhello,a\n")
    (tmp_path / "dev.csv").write_text("text,label\n")
    with pytest.raises(InputError, match="there is no example to measure on"):
        read_set(DataSettings(task="class", path="train.csv", dev=dev), root=tmp_path, seed=0)
