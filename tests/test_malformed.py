"""Malformed input: documents or an error that names its place, in time, and nothing is lost around what is bad.

`test_readers.py` feeds the readers random and damaged bytes. Here good records stand around bad ones, and all of the
good ones must come; files lie about their format and their compression; folders hold what could hang a reader; vectors
come from hostile .npy files; filters are broken in small ways; and the command line is run over all of it.

TAGDEX_LONG_TESTS=1 makes 1,000 examples of each.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import socket
import sqlite3
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import DemoAnalyser, build_index
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer import cli
from indexer.errors import FilterError, InputError
from indexer.fields import metadata_problems
from indexer.filters import Filter, allowed, format_filter, from_json, parse, parse_entity_flag, to_json
from indexer.given import with_vector_field, with_vectors
from indexer.metadata import connect_reader
from indexer.readers import FORMATS, ReadOptions, read_documents
from indexer.records import Document
from indexer.store import META
from indexer.stored import read_documents as read_stored

LONG = os.environ.get("TAGDEX_LONG_TESTS") == "1"
TIME_LIMIT = timedelta(seconds=20)  # of one example; the usual one takes milliseconds, on a busy machine some more

malformed = settings(max_examples=1_000 if LONG else 25, deadline=TIME_LIMIT)
few = settings(malformed, max_examples=1_000 if LONG else 10)

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}

# Pieces that break something somewhere.
PIECES = st.sampled_from(
    [
        b"\0",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\xc0\xaf",
        b"\xf4\x90\x80\x80",
        b"\\ud800",
        b"\\u0000",
        b'"',
        b'""',
        b"'",
        b"\r",
        b"\r\n",
        b"\x0b\x0c\x1c\x85",
        b"\xe2\x80\xa8",
        b",",
        b"\t",
        b"{",
        b"}",
        b"]",
        b"[" * 2_000,
        b'{"a":' * 2_000,
        b"9" * 5_000,
        b"1e999999",
        b"-0",
        b"NaN",
        b"Infinity",
        b"null",
        b"x" * 200_000,
        b" " * 200_000,
        "é".encode("latin-1"),
        "text".encode("utf-16"),
    ]
)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def collect(documents: Iterable[Document]) -> tuple[list[Document], InputError | None]:
    """The documents that come before the error, and the error, if there is one."""
    came = []
    try:
        for document in documents:
            came.append(document)
    except InputError as error:
        return came, error
    return came, None


def read_on(paths: Sequence[Path], options: ReadOptions | None = None) -> tuple[list[Document], list[InputError]]:
    """`--on-error skip`, and that `--on-error stop` gives the same up to the first error, which it raises."""
    errors: list[InputError] = []
    before_first: list[Document] = []
    documents = []
    sources = [str(path) for path in paths]
    for document in read_documents(sources, options or ReadOptions(), on_error=errors.append):
        documents.append(document)
        if not errors:
            before_first.append(document)
    stopped, raised = collect(read_documents(sources, options or ReadOptions()))
    assert str(raised) == str(errors[0] if errors else None)
    assert stopped == (documents if raised is None else before_first)
    for error in errors:
        assert error.source is not None
        assert len(str(error)) < 2_000
        str(error).encode("utf-8", "surrogateescape")  # as a file's name may need
    for document in documents:
        assert document.id
        assert list(metadata_problems(document.metadata)) == []
    return documents, errors


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Some bytes exchanged, parts put in, cut out, doubled and swapped, or all of it in another encoding."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        to = draw(st.integers(at, min(len(data), at + 60)))
        match draw(st.sampled_from(["byte", "piece", "cut", "double", "move", "end"])):
            case "byte":
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "piece":
                data[at:to] = draw(PIECES)
            case "cut":
                del data[at:to]
            case "double":
                data[at:at] = data[at:to] * 2
            case "move":
                part = data[at:to]
                del data[at:to]
                data[:0] = part
            case _:
                del data[at:]
    result = bytes(data)
    if draw(st.integers(0, 9)) == 0:
        result = result.decode("utf-8", "replace").encode(draw(st.sampled_from(["utf-16", "utf-32", "utf-16-be"])))
    return result


# Good records around a bad one, in every format that goes record by record


def json_line(number: int) -> bytes:
    return json.dumps({"id": f"g{number}", "text": f'text "{number}" é\n', "n": [number]}, ensure_ascii=False).encode()


BAD_JSON = st.one_of(
    st.integers(1, 20).map(lambda cut: json_line(0)[:-cut]),
    st.sampled_from(
        [
            b'{"id": "b", "text": NaN}',
            b'{"id": "b", "text": "x", "n": NaN}',
            b'{"id": "b", "text": "x", "n": 1e400}',
            b'{"id": "b", "text": "x", "n": 99999999999999999999}',
            b'{"id": "b", "text": "x", "n": ' + b"9" * 5_000 + b"}",
            b'{"id": "b", "text": "x", "n": ' + b"[" * 101 + b"]" * 101 + b"}",
            b'{"id": "b", "text": "x", "n": ' + b"[" * 100_000,
            b'{"id": "b", "text": "\\ud800"}',
            b'{"id": "\\udc00", "text": "x"}',
            b'{"id": "b", "text": "x", "\\ud800": 1}',
            b'{"id": "b", "text": "\xff"}',
            b'{"id": "b", "text": "\xed\xa0\x80"}',
            b'{"id": "b", "text": "a\0b"}',
            b'{"id": "b", "text": ""}',
            b'{"id": "b", "text": " \\n"}',
            b'{"id": "b", "text": null}',
            b'{"id": "b", "text": 7}',
            b'{"id": "b", "text": ["x"]}',
            b'{"id": "b"}',
            b'{"id": "b", "text": "x", "text": ""}',
            b'{"id": "b", "text": "x", "n": {"a": 1, "a": 1}}',
            b'{"id": "", "text": "x"}',
            b'{"id": 1.5, "text": "x"}',
            b'{"id": true, "text": "x"}',
            b'{"id": {}, "text": "x"}',
            b'{"id": "a\\nb", "text": "x"}',
            b'{"id": "' + b"b" * 1_001 + b'", "text": "x"}',
            b'{"id": "b", "text": "x",}',
            b"{'id': 'b', 'text': 'x'}",
            b'{"id": "b", "text": "x"} {"id": "c", "text": "y"}',
            b'\xef\xbb\xbf{"id": "b", "text": "x"}',
            b"\0",
            b"[]",
            b"null",
            b'"text"',
            b"[" * 100_000,
            b"9" * 5_000,
            b"id,text",
            '{"id": "b", "text": "x"}'.encode("utf-16-le"),
            b"x" * 1_000_000,
        ]
    ),
    st.binary(min_size=1, max_size=30)
    .map(lambda data: data.replace(b"\n", b""))
    .filter(lambda data: data.strip() not in (b"", b"{", b"[", b"[{"))
    .filter(lambda data: b"{" not in data),
)

GOOD_CSV = ('"text ""{n}"" é,\n more"', "plain {n}", '"{n}"', "x'{n}")

BAD_CSV = st.sampled_from(
    [
        b"b",
        b"b,x,1,2",
        b"b,,1",
        b"b, ,1",
        b'b,"x" y,1',
        b'b,"x"y,1',
        b"b,x\ry,1",
        b"b,\xff,1",
        b"\xff,x,1",
        b",\xed\xa0\x80,1",
        b'b,"x',
        b'"b,x,1',
        b'b,"x ""y,1',
        b"b" * 1_001 + b",x,1",
        b"\0b,x,1",
        "b,x,1".encode("utf-16-le"),
        b'{"id": "b"}',
        b"x" * 1_000_000,
    ]
)


def good_row(number: int, kind: int, separator: str) -> bytes:
    cell = GOOD_CSV[kind % len(GOOD_CSV)].format(n=number)
    return f"g{number}{separator}{cell}{separator}{number}".encode()


@st.composite
def around(draw: st.DrawFn, bad: st.SearchStrategy[bytes]) -> list[bytes | int]:
    """Good records, by their number, with bad ones between; a good one is the first."""
    items: list[bytes | int] = [0]
    for number in range(1, draw(st.integers(2, 6))):
        items.extend(draw(st.lists(bad, max_size=2)))
        items.append(number)
    items.extend(draw(st.lists(bad, max_size=1)))
    return items


def check_around(name: str, head: bytes, items: list[bytes | int], good: Callable[[int], bytes], end: bytes) -> None:
    """All the good ones come, whatever stands between, and in their order; stopping gives those before the first."""
    suffix = Path(name).suffix if name.count(".") > 1 else ""
    lines = [good(item) if isinstance(item, int) else item for item in items]
    with folder() as place:
        path = place / name
        path.write_bytes(COMPRESS[suffix](head + b"".join(line + end for line in lines)))
        documents, errors = read_on([path])
        wanted = [f"g{item}" for item in items if isinstance(item, int)]
        assert [document.id for document in documents if document.id.startswith("g")] == wanted
        bad = len(items) - len(wanted)
        assert [document.id for document in documents] == wanted
        assert len(errors) >= bad
        assert all(error.source == str(path) and error.line is not None for error in errors)
        if bad:
            first = next(at for at, item in enumerate(items) if not isinstance(item, int))
            assert [document.id for document in collect(read_documents([str(path)]))[0]] == wanted[:first]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.bz2", "a.jsonl.xz"])
@few
@given(items=around(BAD_JSON), end=st.sampled_from([b"\n", b"\r\n", b"\n\n \t\n"]), mark=st.booleans())
def test_good_json_lines_around_bad_ones_all_come(name: str, items: list[Any], end: bytes, mark: bool) -> None:
    check_around(name, b"\xef\xbb\xbf" * mark, items, json_line, end)


@pytest.mark.parametrize(
    ("name", "separator"), [("a.csv", ","), ("a.tsv", "\t"), ("a.csv.gz", ","), ("a.tsv.xz", "\t")]
)
@few
@given(items=around(BAD_CSV), kinds=st.integers(0, 3), end=st.sampled_from([b"\n", b"\r\n", b"\n\n"]))
def test_good_rows_around_bad_ones_all_come(
    name: str, separator: str, items: list[Any], kinds: int, end: bytes
) -> None:
    items = [item if isinstance(item, int) else item.replace(b",", separator.encode()) for item in items]
    head = separator.join(("id", "text", "n")).encode() + end
    check_around(name, head, items, lambda number: good_row(number, number + kinds, separator), end)


@few
@given(
    items=around(st.sampled_from([b"\xff", b"a\xffb", b"\xed\xa0\x80x", "x".encode("utf-16"), b"\x80" * 100_000])),
    end=st.sampled_from([b"\n", b"\r\n"]),
)
def test_good_lines_around_bad_ones_all_come(items: list[Any], end: bytes) -> None:
    with folder() as place:
        path = place / "a.txt"
        path.write_bytes(b"".join((f"g{i}".encode() if isinstance(i, int) else i) + end for i in items))
        documents, errors = read_on([path], ReadOptions(lines=True))
        assert [document.text for document in documents] == [f"g{item}" for item in items if isinstance(item, int)]
        assert [error.line for error in errors] == [n for n, i in enumerate(items, start=1) if not isinstance(i, int)]


BAD_COLUMN = st.sampled_from(
    [
        pa.array([None]),
        pa.array([""]),
        pa.array([7]),
        pa.array([b"bytes"]),
        pa.array([[1.0]]),
        pa.array([float("nan")]),
        pa.array([b"\xff"], pa.binary()).view(pa.string()),
        pa.array([10**12], pa.timestamp("s")),
        pa.array([{"a": float("inf")}]),
        pa.array([timedelta(1)]),
    ]
)


@malformed
@given(column=BAD_COLUMN, at=st.integers(0, 300), field=st.sampled_from(["text", "id", "n"]))
def test_good_parquet_rows_around_a_bad_one_all_come(column: pa.Array, at: int, field: str) -> None:
    rows = 301
    good = {"id": [f"g{n}" for n in range(rows)], "text": ["some text"] * rows, "n": [None] * rows}
    values: list[Any] = [None] * rows
    table = pa.table({name: pa.array(cells, pa.string()) for name, cells in good.items() if name != field})
    if column.type == pa.string():
        part = [pa.array([cell], pa.string()) for cell in good[field]]
        part[at] = column
        table = table.append_column(field, pa.concat_arrays(part))
    else:
        values[at] = column[0]
        table = table.append_column(field, pa.array(values, column.type))
    with folder() as place:
        pq.write_table(table, place / "a.parquet", row_group_size=100)
        documents, errors = read_on([place / "a.parquet"])
        came = {document.id for document in documents}
        if field == "id" and column.type == pa.string():
            assert len(came) >= rows - 1
        elif field != "text" or column.type == pa.string():
            assert {f"g{n}" for n in range(rows) if n != at} - came == set() or field == "id"
        else:  # a whole column of another type: each of its rows is refused
            assert len(errors) == rows
        assert len(documents) + len(errors) == rows
        assert all(error.line is not None for error in errors)


BAD_VALUES = st.sampled_from(
    [
        ("text", b"blob"),
        ("text", b""),
        ("text", None),
        ("text", ""),
        ("text", 7),
        ("id", b"\xff"),
        ("id", 1.5),
        ("id", ""),
        ("id", "x" * 1_001),
        ("id", "a\nb"),
        ("n", b"blob"),
        ("n", float("inf")),
    ]
)


@few
@given(bad=st.lists(BAD_VALUES, min_size=1, max_size=3), after=st.integers(0, 3))
def test_good_sqlite_rows_around_bad_ones_all_come(bad: list[tuple[str, Any]], after: int) -> None:
    with folder() as place:
        path = place / "a.db"
        rows = [{"id": "g0", "text": "text", "n": 1}]
        rows += [{"id": "b", "text": "text", "n": 1} | {field: value} for field, value in bad]
        rows += [{"id": f"g{n + 1}", "text": "text", "n": 1} for n in range(after)]
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE t (id, text, n)")
            connection.executemany("INSERT INTO t VALUES (:id, :text, :n)", rows)
            connection.execute("INSERT INTO t VALUES ('u', CAST(x'ff' AS TEXT), 1)")
            connection.commit()
        documents, errors = read_on([path])
        assert [document.id for document in documents] == [f"g{n}" for n in range(after + 1)]
        assert [error.line for error in errors] == [*range(2, 2 + len(bad)), len(rows) + 1]


# Files that are not what they seem


VALID_TEXT = {
    "jsonl": b"".join(json_line(n) + b"\n" for n in range(4)),
    "csv": b"id,text,n\n" + b"".join(good_row(n, n, ",") + b"\n" for n in range(4)),
    "tsv": b"id\ttext\tn\n" + b"".join(good_row(n, n, "\t") + b"\n" for n in range(4)),
    "text": b"a text\nof lines\n",
}


def valid_binary(format: str) -> bytes:
    with folder() as place:
        if format == "parquet":
            table = pa.table({"id": ["g0", "g1"], "text": ["one", "two"], "n": [[1], [2, 3]]})
            pq.write_table(table, place / "a", row_group_size=1)
        else:
            with closing(sqlite3.connect(place / "a")) as connection:
                connection.execute("CREATE TABLE t (id, text, n)")
                connection.executemany("INSERT INTO t VALUES (?, ?, ?)", [(f"g{n}", "x" * 900, n) for n in range(40)])
                connection.execute("CREATE INDEX i ON t (n)")
                connection.commit()
        return (place / "a").read_bytes()


VALID = VALID_TEXT | {format: valid_binary(format) for format in ("parquet", "sqlite")}


@pytest.mark.parametrize("format", FORMATS)
@malformed
@given(data=st.data())
def test_damaged_content_under_any_name(format: str, data: st.DataObject) -> None:
    content = data.draw(
        damaged(VALID[data.draw(st.sampled_from(FORMATS))] if data.draw(st.booleans()) else VALID[format])
    )
    squeeze = data.draw(st.sampled_from(list(COMPRESS)))
    suffix = data.draw(st.sampled_from(["", "", squeeze, *COMPRESS]))
    options = ReadOptions(
        format=format,
        lines=data.draw(st.booleans()),
        table=data.draw(st.sampled_from([None, "t", "x"])),
        text_fields=data.draw(st.sampled_from([(), ("text",), ("n", "text")])),
        id_field=data.draw(st.sampled_from([None, "id", "n", "nothing"])),
        text_required=data.draw(st.booleans()),
    )
    with folder() as place:
        path = place / f"a.x{suffix}"
        path.write_bytes(COMPRESS[squeeze](content))
        documents, errors = read_on([path], options)
        assert documents or errors


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
@malformed
@given(data=st.data())
def test_what_comes_before_damage_in_compressed_data_is_right(suffix: str, data: st.DataObject) -> None:
    lines = [json.dumps({"id": f"g{n}", "text": f"text {n * 7919}"}).encode() + b"\n" for n in range(300)]
    parts = [COMPRESS[suffix](b"".join(lines[at : at + 50])) for at in range(0, 300, 50)]
    ends = list(accumulate(map(len, parts)))
    packed = bytearray(b"".join(parts))
    at = data.draw(st.integers(0, len(packed) - 1))
    cut = data.draw(st.booleans())
    if cut:
        del packed[at:]
    else:
        packed[at] ^= 1 << data.draw(st.integers(0, 7))
    with folder() as place:
        path = place / f"a.jsonl{suffix}"
        path.write_bytes(packed)
        documents, errors = read_on([path])
    ids = [document.id for document in documents]
    # Parts that were packed by themselves and end before the damage are all there. A checksum comes behind what it
    # is for, so that some wrong records may come before their error.
    before = 50 * bisect_right(ends, at)
    assert ids[:before] == [f"g{n}" for n in range(before)]
    if not errors:  # cut off exactly between two parts, or changed where it means nothing, as in a header's time
        right = [(f"g{n}", f"text {n * 7919}") for n in range(before if cut else 300)]
        assert [(document.id, document.text) for document in documents] == right


@malformed
@given(content=st.sampled_from(list(VALID_TEXT.values())).flatmap(damaged), format=st.sampled_from(list(VALID_TEXT)))
def test_standard_input(content: bytes, format: str) -> None:
    before = sys.stdin
    errors: list[InputError] = []
    try:
        sys.stdin = io.TextIOWrapper(io.BytesIO(content))
        documents = list(read_documents(["-"], ReadOptions(format=format), on_error=errors.append))
    finally:
        sys.stdin = before
    assert documents or errors
    assert all(error.source == "-" for error in errors)


# Folders


def unusual(kind: str, path: Path) -> None:
    """Make something that a reader could hang on, or walk for ever."""
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "zero":
            path.symlink_to("/dev/zero")
        case "random":
            path.symlink_to("/dev/urandom")
        case "full":
            path.symlink_to("/dev/full")
        case "terminal":
            path.symlink_to("/dev/tty")
        case "own input":
            path.symlink_to("/proc/self/fd/0")
        case "dead link":
            path.symlink_to("nowhere")
        case "link to itself":
            path.symlink_to(path.name)
        case "link to a parent":
            path.symlink_to("..")
        case "link to the folder":
            path.symlink_to(".")
        case "two links in a ring":
            path.with_name("ring").symlink_to(path.name)
            path.symlink_to("ring")
        case "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                here = os.getcwd()
                os.chdir(path.parent)  # a socket's name may have a hundred characters only
                try:
                    listener.bind(path.name)
                finally:
                    os.chdir(here)
        case "folder":
            path.mkdir()
        case "empty":
            path.write_bytes(b"")
        case "memory":
            path.symlink_to("/proc/self/mem")
        case _:
            Path(os.fsdecode(os.fsencode(path.parent) + b"/\xff\xfe-" + os.fsencode(path.name))).write_bytes(b"text")


UNUSUAL = (
    "pipe",
    "zero",
    "random",
    "full",
    "terminal",
    "own input",
    "dead link",
    "link to itself",
    "link to a parent",
    "link to the folder",
    "two links in a ring",
    "socket",
    "folder",
    "empty",
    "memory",
    "name that is not UTF-8",
)


@pytest.mark.parametrize("name", ["m.jsonl", "m.csv.gz", "m.txt", "m.parquet", "m.db"])
@pytest.mark.parametrize("kind", UNUSUAL)
def test_a_folder_with_something_unusual_in_it(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "z.txt").write_text("last")
    unusual(kind, tmp_path / name)
    started = time.monotonic()
    documents, errors = read_on([tmp_path])
    assert [document.text for document in documents if document.text != "text"] == ["first", "last"]
    assert len(documents) + len(errors) <= 4
    if kind in ("link to a parent", "link to the folder", "folder"):  # links to folders are left out
        assert errors == []
    else:
        assert errors
    assert time.monotonic() - started < TIME_LIMIT.total_seconds()


@few
@given(kinds=st.lists(st.sampled_from(UNUSUAL), min_size=1, max_size=6, unique=True), depth=st.integers(0, 40))
def test_deep_folders_with_several_unusual_things(kinds: list[str], depth: int) -> None:
    with folder() as place:
        deep = place.joinpath(*["d"] * depth)
        deep.mkdir(parents=True, exist_ok=True)
        for number, kind in enumerate(kinds):
            inner = deep / f"k{number}"
            inner.mkdir()
            unusual(kind, inner / "m.txt")
        (deep / "z.txt").write_text("good")
        documents, _ = read_on([place])
        assert "good" in [document.text for document in documents]


# Vectors


def npy(shape: str, *, descr: str = "'<f4'", order: str = "False", body: bytes = b"", version: int = 1) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode("latin-1")
    size = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + body


HOSTILE_NPY = [
    npy("(2, 4)"),
    npy("(2, 4)", body=bytes(31)),
    npy("(2, -4)", body=bytes(32)),
    npy("(-1, 4)", body=bytes(32)),
    npy(f"({2**62}, {2**62})", body=bytes(32)),
    npy(f"({10**30}, 4)", body=bytes(32)),
    npy(f"({10**4_000}, {10**4_000})", body=bytes(32)),
    npy(f"({2**70}, 0)"),
    npy(f"(0, {2**70})"),
    npy(f"(2, {2**40})", body=bytes(32)),
    npy("(0, 4)"),
    npy("(2, 0)"),
    npy("()", body=bytes(4)),
    npy("(8,)", body=bytes(32)),
    npy("(2, 2, 2)", body=bytes(32)),
    npy("(2.0, 4)", body=bytes(32)),
    npy("(True, 4)", body=bytes(32)),
    npy("2", body=bytes(32)),
    npy("'x'", body=bytes(32)),
    npy("(2, 4)", descr="'|O'", body=b"cos\nsystem\n(S'true'\ntR."),
    npy("(2, 4)", descr="'<U8'", body=bytes(512)),
    npy("(2, 4)", descr="'<c8'", body=bytes(64)),
    npy("(2, 4)", descr="'<i4'", body=bytes(32)),
    npy("(2, 4)", descr="[('a', '<f4')]", body=bytes(32)),
    npy("(2, 4)", descr="'<f4,<f4'", body=bytes(64)),
    npy("(2, 4)", descr="('<f4', (3,))", body=bytes(96)),
    npy("(2, 4)", descr="'<V0'", body=bytes(32)),
    npy("(2, 4)", descr="'nonsense'", body=bytes(32)),
    npy("(2, 4)", descr="7", body=bytes(32)),
    npy("(2, 4)", descr="[['a']]", body=bytes(32)),
    npy("(2, 4)", order="7", body=bytes(32)),
    npy("(2, 4)", order="__import__('os').system('true')", body=bytes(32)),
    npy("(2, 4)" + "(" * 5_000, body=bytes(32)),
    npy("[" * 900 + "]" * 900, body=bytes(32)),
    npy("-" * 3_000 + "1", body=bytes(32)),
    npy("(2, 4)" + " " * 60_000, body=bytes(32)),
    npy("(2, 4)", version=2, body=bytes(32)),
    npy("(2, 4)", version=9, body=bytes(32)),
    b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
    b"\x93NUMPY\x01\x00",
    b"\x93NUMPY",
    b"PK\x03\x04" + bytes(30),
    b"PK\x05\x06" + bytes(18),
    b"",
    b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    np.zeros((2, 4), "<f4").tobytes(),
]


def check_vectors(content: bytes) -> None:
    with folder() as place:
        path = place / "v.npy"
        path.write_bytes(content)
        texts = [Document("a", "one"), Document("b", "two")]
        came, error = collect(with_vectors(texts, path))
        if error is None:
            assert [document.id for document in came] == ["a", "b"]
        else:
            assert error.source is not None
            assert error.source.startswith(str(path))
            assert len(str(error)) < 2_000
            assert str(error).isprintable()
        for document in came:
            assert document.vector is not None
            assert document.vector.dtype == np.float32
            assert np.isfinite(document.vector).all()


@pytest.mark.parametrize("number", range(len(HOSTILE_NPY)))
def test_hostile_npy_files(number: int) -> None:
    check_vectors(HOSTILE_NPY[number])


@malformed
@given(data=st.data())
def test_damaged_npy_files(data: st.DataObject) -> None:
    order = data.draw(st.sampled_from("CF"))
    kind = data.draw(st.sampled_from(["<f4", ">f4", "<f2", "<f8", ">f8"]))
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(np.arange(1, 9).reshape(2, 4), dtype=kind, order=order))
    check_vectors(data.draw(damaged(buffer.getvalue())))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@malformed
@given(value=JSON_VALUES | st.lists(st.floats() | st.integers(), max_size=5))
def test_any_value_in_a_vector_field(value: Any) -> None:
    documents = [Document("a", "", {"v": [1.0, 2.0]}), Document("b", "", {"v": value})]
    came, error = collect(with_vector_field(documents, "v"))
    assert error is None or "document 'b'" in str(error)
    assert [document.id for document in came] == (["a", "b"] if error is None else ["a"])
    assert all(np.isfinite(document.vector).all() for document in came if document.vector is not None)


# Filters


FILTERS = [
    "year >= 2020 and not lang in [de, 'f r', 1.5, true]",
    'entity ORG:acme* or entity *:"Ada L" and label = sport',
    '(author.`b.c` in 2019..2021 or exists id.x) and id in [d1, "d 2"]',
    'a = "\\u00e9\\n" or b != -1.5e3 or `not` < x',
    "not not (exists label or entity PER or *)",
]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    documents = [Document(f"d{n}", "Ada plays ball", {"year": 2000 + n, "a": ["x", n]}) for n in range(5)]
    path = build_index(tmp_path_factory.mktemp("filters") / "index", documents, DemoAnalyser())
    with closing(connect_reader(path / META)) as connection:
        yield connection


def check_filter(make: Callable[[], Filter], database: sqlite3.Connection) -> None:
    """A filter that can be shown, read back and used, or one line that says what is wrong."""
    try:
        filter = make()
    except FilterError as error:
        message = str(error)
        assert message
        message.encode("utf-8")
        assert len(message) < 5_000
        return
    assert parse(format_filter(filter)) == filter
    assert from_json(json.loads(json.dumps(to_json(filter)))) == filter
    assert set(allowed(database, filter)) <= set(allowed(database, parse("*")))


@malformed
@given(content=st.sampled_from(FILTERS).flatmap(lambda text: damaged(text.encode())))
def test_broken_filters(database: sqlite3.Connection, content: bytes) -> None:
    text = content.decode("utf-8", "surrogateescape")
    check_filter(lambda: parse(text), database)
    check_filter(lambda: parse_entity_flag(text), database)


@malformed
@given(
    parts=st.lists(
        st.sampled_from(
            [
                "(",
                ")",
                "not ",
                "and ",
                "or ",
                "a",
                "=",
                "1 ",
                "in ",
                "[",
                "]",
                ",",
                "..",
                '"',
                "`",
                "entity ",
                "PER",
                ":",
                "*",
            ]
        ),
        max_size=30,
    ),
    times=st.sampled_from([1, 1, 1, 200, 5_000]),
)
def test_filters_made_of_their_own_words(database: sqlite3.Connection, parts: list[str], times: int) -> None:
    text = "".join(parts) * times
    check_filter(lambda: parse(text), database)


@st.composite
def broken_json(draw: st.DrawFn) -> Any:
    """The JSON form of a filter, with some of its parts exchanged, taken out or put elsewhere."""
    obj = to_json(parse(draw(st.sampled_from(FILTERS))))
    for _ in range(draw(st.integers(1, 3))):
        at: Any = obj
        while isinstance(at, dict | list) and at:
            key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else list(range(len(at)))))
            if not isinstance(at[key], dict | list) or draw(st.booleans()):
                match draw(st.sampled_from(["value", "delete", "nest", "add"])):
                    case "value":
                        at[key] = draw(JSON_VALUES)
                    case "delete":
                        del at[key]
                    case "nest":
                        at[key] = {draw(st.sampled_from(["not", "and", "or", "path", "entity", "id"])): at[key]}
                    case _ if isinstance(at, dict):
                        at[draw(st.sampled_from(["not", "op", "value", "label", "x"]))] = draw(JSON_VALUES)
                break
            at = at[key]
    return obj


@malformed
@given(obj=broken_json() | JSON_VALUES)
def test_broken_json_filters(database: sqlite3.Connection, obj: Any) -> None:
    check_filter(lambda: from_json(obj), database)


# The command line


def run(*arguments: object, stdin: bytes = b"") -> tuple[int, str, str]:
    """Exit code, output and errors of `indexer` in this process."""
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv, sys.stdin
    try:
        sys.argv = ["indexer", *map(str, arguments)]
        sys.stdin = io.TextIOWrapper(io.BytesIO(stdin))
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        sys.argv, sys.stdin = before
    assert isinstance(ended.value.code, int)
    assert "Traceback" not in err.getvalue()
    assert "unexpected" not in err.getvalue()
    return ended.value.code, out.getvalue(), err.getvalue()


def ids_in(index: Path) -> list[str]:
    if not (index / META).is_file():
        return []
    with closing(connect_reader(index / META)) as connection:
        docs = [doc for (doc,) in connection.execute("SELECT doc FROM documents ORDER BY doc")]
        return [stored.id for stored in read_stored(connection, docs).values()]


def vector_line(number: int) -> bytes:
    return b'{"id": "g%d", "text": "text", "v": [1.0, %d.5]}' % (number, number)


BAD_VECTOR_LINE = BAD_JSON | st.sampled_from(
    [
        b'{"id": "b", "v": []}',
        b'{"id": "b", "v": [1]}',
        b'{"id": "b", "v": [0, 0]}',
        b'{"id": "b", "v": ["1", "2"]}',
        b'{"id": "b", "v": [1e39, 1]}',
        b'{"id": "b", "v": [[1, 2]]}',
    ]
)


@settings(malformed, max_examples=200 if LONG else 12)
@given(items=around(BAD_VECTOR_LINE), stop=st.booleans(), by_pipe=st.booleans())
def test_adding_good_records_around_bad_ones(items: list[Any], stop: bool, by_pipe: bool) -> None:
    content = b"".join((vector_line(item) if isinstance(item, int) else item) + b"\n" for item in items)
    good = [f"g{item}" for item in items if isinstance(item, int)]
    first = next((at for at, item in enumerate(items) if not isinstance(item, int)), None)
    with folder() as place:
        (place / "a.jsonl").write_bytes(content)
        source = "-" if by_pipe else place / "a.jsonl"
        options = ["--format", "jsonl", "--vector-field", "v", "--on-error", "stop" if stop else "skip"]
        code, out, err = run("add", place / "index", source, *options, stdin=content)
        stored = ids_in(place / "index")
        if code == 0:
            assert stored == good
            assert err.count("\n") == (0 if first is None else 1 + min(6, len(items) - len(good)))
        else:
            assert out == ""
            assert err.startswith("Error: ")
            assert first is not None
            assert stop
            assert stored == good[:first]
            assert err.count("\n") == 1


@settings(malformed, max_examples=200 if LONG else 8)
@given(data=st.data(), format=st.sampled_from(FORMATS))
def test_adding_damaged_files(data: st.DataObject, format: str) -> None:
    content = data.draw(damaged(VALID[format]))
    with folder() as place:
        (place / "a").write_bytes(content)
        (place / "v.npy").write_bytes(data.draw(st.sampled_from(HOSTILE_NPY)))
        code, out, err = run("add", place / "index", place / "a", "--format", format, "--vectors", place / "v.npy")
        assert (code, out) == (1, "") or code == 0
        assert code == 0 or (err.startswith("Error: ") and err.count("\n") == 1)


@settings(malformed, max_examples=200 if LONG else 8)
@given(content=st.sampled_from(FILTERS).flatmap(lambda text: damaged(text.encode())))
def test_broken_filters_of_a_command(content: bytes) -> None:
    text = content.decode("utf-8", "surrogateescape")
    with folder() as place:
        (place / "a.jsonl").write_bytes(vector_line(0) + b"\n" + vector_line(1) + b"\n")
        assert run("add", place / "index", place / "a.jsonl", "--vector-field", "v")[0] == 0
        code, out, err = run("remove", place / "index", "--where", text)
        if code == 0:
            assert out.endswith("removed\n")
        else:
            assert (code, out) in ((1, ""), (2, ""))
            assert (err.startswith("Error: "), err.count("\n")) == (True, 1)
            assert ids_in(place / "index") == ["g0", "g1"]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--format", "xml"),
        ("--on-error", "ignore"),
        ("--batch-tokens", "-1"),
        ("--batch-tokens", "9" * 5_000),
        ("--nonsense",),
        ("--vectors", "v.npy", "--on-error", "skip"),
        ("--vectors", "v.npy", "--vector-field", "v"),
        ("--tags", "--no-tags"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    files = [tmp_path / "a.jsonl"] if arguments else []
    code, out, err = run("add", tmp_path / "index", *files, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert not (tmp_path / "index").exists()
