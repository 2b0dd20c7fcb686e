"""Readers of data sets, on small files written for these tests."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from indexer.training.data import (
    LabelledText,
    Retrieval,
    ScoredPair,
    TaggedText,
    align_tokens,
    detokenise,
    join_tokens,
    join_windows,
    merge_handles,
    read_beir,
    read_columns,
    read_csv_column,
    read_dbpedia,
    read_jsonl,
    read_stsb,
    spans_of_tags,
)
from indexer.training.lines import DataError


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        pytest.param(["O", "I-PER", "I-PER", "B-PER"], [("PER", 1, 3), ("PER", 3, 4)], id="IOB1"),
        pytest.param(["I-PER", "I-LOC"], [("PER", 0, 1), ("LOC", 1, 2)], id="IOB1 without B"),
        pytest.param(["B-PER", "B-PER", "I-PER", "O"], [("PER", 0, 1), ("PER", 1, 3)], id="IOB2"),
        pytest.param(["S-PER", "B-PER", "I-PER", "E-PER"], [("PER", 0, 1), ("PER", 1, 4)], id="IOBES"),
        pytest.param(["U-PER", "U-PER", "B-PER", "L-PER"], [("PER", 0, 1), ("PER", 1, 2), ("PER", 2, 4)], id="BILOU"),
        pytest.param(["E-PER", "I-PER"], [("PER", 0, 1), ("PER", 1, 2)], id="end closes a span"),
        pytest.param(["B-creative-work", "I-creative-work"], [("creative-work", 0, 2)], id="hyphen in a type"),
        pytest.param([], [], id="empty"),
    ],
)
def test_spans_of_tags(tags: list[str], spans: list[tuple[str, int, int]]) -> None:
    assert spans_of_tags(tags) == spans


@pytest.mark.parametrize("tag", ["X-PER", "B", "PER", "O-PER", ""])
def test_spans_of_tags_refuse_other_tags(tag: str) -> None:
    with pytest.raises(DataError, match=f"'{tag}' is no tag"):
        spans_of_tags([tag])


def test_join_tokens_gives_offsets_of_every_token() -> None:
    tokens = ["Mr", ".", "O", "(", "47", ")", "does", "n't", "live", "in", "Ann", "'s", "house", ":", "#", "no", "!"]
    text, offsets = join_tokens(tokens)
    assert text == "Mr. O (47) doesn't live in Ann's house: #no!"
    assert [text[start:end] for start, end in offsets] == tokens


def test_align_tokens_to_raw_text() -> None:
    assert align_tokens("I  can't, ok", ["I", "ca", "n't", ",", "ok"]) == [(0, 1), (3, 5), (5, 8), (8, 9), (10, 12)]


@pytest.mark.parametrize("tokens", [["a", "x"], ["b"], ["a", "c"]])
def test_align_tokens_refuses_what_does_not_fit(tokens: list[str]) -> None:
    with pytest.raises(DataError, match="is not at character"):
        align_tokens("a b c", tokens)


@pytest.mark.parametrize(
    ("spans", "merged"),
    [
        ([("PER", 0, 1), ("PER", 1, 2)], [("PER", 0, 1)]),
        ([("PER", 0, 2)], [("PER", 0, 1)]),
        ([("PER", 1, 2)], [("PER", 0, 1)]),
        ([("PER", 1, 3)], [("PER", 0, 2)]),
        ([], []),
    ],
)
def test_merge_handles(spans: list[tuple[str, int, int]], merged: list[tuple[str, int, int]]) -> None:
    assert merge_handles(["@", "ann_b", "wins"], spans) == (["@ann_b", "wins"], merged)


def test_merge_handles_leaves_an_at_sign_alone_without_a_name() -> None:
    assert merge_handles(["@", "!", "@"], []) == (["@", "!", "@"], [])


def test_read_columns_with_raw_text(tmp_path: Path) -> None:
    path = tmp_path / "a.iob2"
    path.write_text(
        "# newdoc\n# text = Ann lives in New York.\n"
        "1\tAnn\tB-PER\n2\tlives\tO\n3\tin\tO\n4\tNew\tB-LOC\n5\tYork\tI-LOC\n6\t.\tO\n"
        "\n# text = # 5\n1\t#\tO\n2\t5\tO\n",
        encoding="utf-8",
    )
    assert read_columns(path, token=1, tag=2) == [
        TaggedText("Ann lives in New York.", (("PER", 0, 3), ("LOC", 13, 21))),
        TaggedText("# 5", ()),
    ]


def test_read_columns_joins_tokens_and_renames_types(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text(
        "Acme\tB-corporation\nsells\tO\nX1\tB-product\n!\tO\n \t\n\nRT\tO\n@\tB-person\nann\tB-person\n:\tO\nhi\tO",
        encoding="utf-8",
    )
    assert read_columns(path, token=0, tag=1, types={"corporation": "ORG", "person": "PER"}) == [
        TaggedText("Acme sells X1!", (("ORG", 0, 4),)),
        TaggedText("RT @ann: hi", (("PER", 3, 7),)),
    ]


def test_read_columns_keeps_a_hash_sign_that_is_a_token(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("#\tO\nRome\tB-LOC\n", encoding="utf-8")
    assert read_columns(path, token=0, tag=1) == [TaggedText("#Rome", (("LOC", 1, 5),))]


def test_read_columns_can_drop_handles(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("@ann\tO\nsaw\tO\nRome\tB-LOC\n\n@bob\tO\n", encoding="utf-8")
    assert read_columns(path, token=0, tag=1, drop_handles=True) == [TaggedText("saw Rome", (("LOC", 4, 8),))]


def test_read_columns_names_the_line_that_is_short(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("Ann\tB-PER\nRome\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.conll, line 2: expected 2 columns, got 1"):
        read_columns(path, token=0, tag=1)


def test_read_columns_does_not_cut_at_odd_line_separators(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("x\u2028y\tO\nz\x85\tO\n", encoding="utf-8")
    assert read_columns(path, token=0, tag=1) == [TaggedText("x\u2028y z\x85")]


def test_join_windows_moves_spans() -> None:
    texts = [TaggedText("Ann is here.", (("PER", 0, 3),)), TaggedText("So is Bob.", (("PER", 6, 9),))]
    assert join_windows(texts, seed=0, sentences=(2, 2)) == [
        TaggedText("Ann is here. So is Bob.", (("PER", 0, 3), ("PER", 19, 22)))
    ]


def test_join_windows_keeps_every_text_in_order() -> None:
    texts = [TaggedText(f"t{number}") for number in range(23)]
    windows = join_windows(texts, seed=5)
    assert " ".join(window.text for window in windows) == " ".join(text.text for text in texts)
    assert all(2 <= len(window.text.split()) <= 5 for window in windows[:-1])
    assert windows == join_windows(texts, seed=5)


def test_read_stsb(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('g\tf\t2012\t1\t3.80\tA "big cat.\tA cat.\n', encoding="utf-8")
    assert read_stsb(path) == [ScoredPair('A "big cat.', "A cat.", 3.8)]


def test_read_stsb_names_the_line_that_is_short(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("g\tf\t2012\t1\t3.80\tA cat.\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 1: expected at least 7 columns, got 6"):
        read_stsb(path)


def test_read_dbpedia_detokenises(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("0,Acme ( AC ) makes things , often .\tIt is old .\n13,A book .\n", encoding="utf-8")
    assert read_dbpedia(path) == [
        LabelledText("Acme (AC) makes things, often. It is old.", 0),
        LabelledText("A book.", 13),
    ]


def test_read_dbpedia_names_the_line_without_a_label(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("Acme, a firm\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 1: expected a class number"):
        read_dbpedia(path)


@pytest.mark.parametrize(
    ("tokenised", "text"),
    [
        ("the city 's oldest , and it did n't close .", "the city's oldest, and it didn't close."),
        ("a line ( 12 km ) [ 3 ] .", "a line (12 km) [3]."),
        ("Ann ( ; ) is old .", "Ann is old."),
        ("It grew.The rest did not .", "It grew. The rest did not."),
        ("version 2.0 of U.S. law , e.g. this", "version 2.0 of U.S. law, e.g. this"),
    ],
)
def test_detokenise(tokenised: str, text: str) -> None:
    assert detokenise(tokenised) == text


def test_read_beir(tmp_path: Path) -> None:
    with lzma.open(tmp_path / "corpus.jsonl.xz", "wt", encoding="utf-8") as file:
        file.write('{"_id": "d1", "title": "T", "text": "one"}\n{"_id": "d2", "text": "two"}\n')
    (tmp_path / "queries.jsonl").write_text(
        '{"_id": "q1", "text": "first?"}\n{"_id": "q2", "text": "other split"}\n', encoding="utf-8"
    )
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "train.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\td2\t1\nq1\td1\t0\n", encoding="utf-8"
    )
    assert read_beir(tmp_path, split="train") == Retrieval(
        documents={"d1": "T one", "d2": "two"}, queries={"q1": "first?"}, relevant={"q1": {"d2": 1.0}}
    )


CORPUS, QUERIES = '{"_id": "d", "title": null, "text": "a"}\n', '{"_id": "q", "text": "a"}\n'
QRELS = "query-id\tcorpus-id\tscore\nq\td\t1\n"


@pytest.mark.parametrize(
    ("corpus", "queries", "qrels", "message"),
    [
        (CORPUS + "[1]\n", QUERIES, QRELS, "corpus.jsonl, line 2: expected a JSON object"),
        (CORPUS + "{bad\n", QUERIES, QRELS, "corpus.jsonl, line 2: not JSON"),
        (CORPUS + '{"_id": "1"}', QUERIES, QRELS, "corpus.jsonl, line 2, field 'text': a text is missing, got None"),
        (CORPUS + '{"text": "a"}', QUERIES, QRELS, "corpus.jsonl, line 2, field '_id': an id is missing, got None"),
        ('{"_id": 1, "text": "\\ud800"}', QUERIES, QRELS, "corpus.jsonl, line 1, field 'text': character 1 is"),
        (CORPUS, '{"_id": "q", "text": null}', QRELS, "queries.jsonl, line 1, field 'text': a text is missing"),
        (CORPUS, QUERIES, QRELS + "q\td\n", "test.tsv, line 3: expected 3 columns, got 2"),
        (
            CORPUS,
            QUERIES,
            QRELS + "q\td\t0.5\n",
            "test.tsv, line 3, field 'score': '0.5' is no grade: expected a whole",
        ),
        (CORPUS, QUERIES, "query\tcorpus-id\tscore\n", "test.tsv, line 1: there is no column 'query-id', only query"),
    ],
)
def test_read_beir_names_the_line(tmp_path: Path, corpus: str, queries: str, qrels: str, message: str) -> None:
    write_beir(tmp_path, corpus, queries, qrels)
    with pytest.raises(DataError) as raised:
        read_beir(tmp_path, split="test")
    assert message in str(raised.value)


def test_read_beir_without_titles_and_with_byte_order_marks(tmp_path: Path) -> None:
    write_beir(tmp_path, "\ufeff" + CORPUS, "\ufeff" + QUERIES, "\ufeff" + QRELS)
    assert read_beir(tmp_path, split="test") == Retrieval({"d": "a"}, {"q": "a"}, {"q": {"d": 1.0}})


def write_beir(folder: Path, corpus: str, queries: str, qrels: str) -> None:
    (folder / "qrels").mkdir()
    for name, content in (("corpus.jsonl", corpus), ("queries.jsonl", queries), ("qrels/test.tsv", qrels)):
        (folder / name).write_text(content, encoding="utf-8")


def test_read_jsonl_skips_empty_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n', encoding="utf-8")
    assert list(read_jsonl(tmp_path / "a.jsonl")) == [{"a": 1}, {"a": 2}]


def test_read_csv_column_leaves_out_empty_cells(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('x;y\r\n1;"a;b"\r\n2;\r\n', encoding="utf-8", newline="")
    assert read_csv_column(tmp_path / "a.csv", "y", delimiter=";") == ["a;b"]


def test_read_csv_column_names_the_columns_there_are(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="has no column 'z', only x, y"):
        read_csv_column(tmp_path / "a.csv", "z")
