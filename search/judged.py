"""Queries with judgements, as test collections come: the forms of BEIR and of TREC, told apart by their content."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import NoReturn

from indexer.errors import InputError
from indexer.fields import has_lone_surrogate
from indexer.readers.files import ByteMeter, SourceFile, find_files
from indexer.readers.lines import decode, read_lines
from indexer.readers.options import ReadOptions

Queries = Mapping[str, str]
"""The text of each query, by id."""

Judgements = Mapping[str, Mapping[str, int]]
"""By query id and document id, how relevant the document is: 0 or less is not relevant."""

_INTEGER = re.compile(r"[+-]?[0-9]+")
_LARGEST = 1_000_000  # a relevance beyond it is an id in the wrong column
_BEIR_HEADER = ("query-id", "corpus-id", "score")
_TOPIC_PREFIXES = {"num": "Number:", "title": "Topic:"}  # what old topics say again after the tag
_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9_-]*)[^<>]*>")
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{0,31});")


def read_queries(path: str | os.PathLike[str]) -> dict[str, str]:
    """The queries of a file, in its order: BEIR's queries.jsonl, lines of id TAB text, or TREC topics.

    JSONL has `_id` (or `id`) and `text`; of a TREC topic the number and the title are taken. Compressed files and "-"
    for standard input are read too. Raises `InputError`, which names the file and the line.
    """
    file = _file(path)
    lines = _lines(file)
    first = lines[0][1].lstrip()
    if first.startswith("{"):
        found = _jsonl_queries(lines, file.path)
    elif first.startswith("<"):
        found = _topics(lines, file.path)
    else:
        found = _tsv_queries(lines, file.path)
    queries: dict[str, str] = {}
    places: dict[str, int] = {}
    for number, id_, text in found:
        if not id_:
            _fail("the query's id is empty", file.path, number)
        if not text:
            _fail(f"the text of query '{id_}' is empty", file.path, number)
        if has_lone_surrogate(id_ + text):
            _fail(f"query {id_!r} has a lone surrogate, which is not valid Unicode", file.path, number)
        if id_ in queries:
            _fail(f"query '{id_}' was already in line {places[id_]}: each id may be there once", file.path, number)
        queries[id_], places[id_] = text, number
    return queries


def read_qrels(path: str | os.PathLike[str]) -> dict[str, dict[str, int]]:
    """The judgements of a file: BEIR's (query-id TAB corpus-id TAB score, with a header) or TREC's (4 columns).

    TREC's columns are query, iteration (ignored), document, relevance. Raises `InputError`, which names the file and
    the line.
    """
    file = _file(path)
    lines = _lines(file)
    number, first = lines[0]
    beir = "\t" in first and len(first.split("\t")) == 3
    if beir:
        names = tuple(part.strip().lower() for part in first.split("\t"))
        if names == _BEIR_HEADER:
            lines = lines[1:]
        elif not _INTEGER.fullmatch(names[2]):
            _fail(f"the header must be {' TAB '.join(_BEIR_HEADER)}, got {first!r}", file.path, number)
    qrels: dict[str, dict[str, int]] = {}
    for number, line in lines:
        parts = [part.strip() for part in line.split("\t")] if beir else line.split()
        wanted = 3 if beir else 4
        if len(parts) != wanted:
            form = "query-id TAB corpus-id TAB score" if beir else "query, iteration, document, relevance"
            _fail(f"has {_columns(len(parts))}, a judgement has {wanted}: {form}", file.path, number)
        query, document, score = parts[0], parts[-2], parts[-1]
        if not query or not document:
            _fail(f"the id of the {'document' if query else 'query'} is empty", file.path, number)
        if not _INTEGER.fullmatch(score) or abs(int(score[:12])) > _LARGEST:
            _fail(f"the relevance must be a whole number up to {_LARGEST:,}, got '{score}'", file.path, number)
        judged = qrels.setdefault(query, {})
        if judged.setdefault(document, int(score)) != int(score):
            _fail(
                f"document '{document}' is judged {score} for query '{query}', and {judged[document]} in a line before",
                file.path,
                number,
            )
    if not qrels:
        raise InputError("holds no judgement", source=file.path)
    return qrels


def _file(path: str | os.PathLike[str]) -> SourceFile:
    (found, *others) = find_files([path], ReadOptions(format="text"))
    if isinstance(found, InputError):
        raise found
    if others or found.path != os.fspath(path):
        raise InputError("is a folder: name the file in it", source=os.fspath(path))
    return found


def _lines(file: SourceFile) -> list[tuple[int, str]]:
    """(number, text) of every line that is not blank, at least one."""
    lines = []
    for line in read_lines(file, ByteMeter(file.size)):
        text = decode(line, file.path).rstrip("\r\n")
        if text.strip():
            lines.append((line.number, text))
    if not lines:
        raise InputError("is empty", source=file.path)
    return lines


def _jsonl_queries(lines: list[tuple[int, str]], source: str) -> Iterator[tuple[int, str, str]]:
    for number, line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"is not JSON: {error}", source=source, line=number) from error
        if not isinstance(record, dict):
            _fail("a line must be a JSON object", source, number)
        name = "_id" if "_id" in record else "id"
        for field, types in ((name, (str, int)), ("text", (str,))):
            if field not in record:
                wanted = "_id" if field == "id" else field
                _fail(f"a query needs the field '{wanted}', there are {', '.join(record) or 'none'}", source, number)
            if isinstance(record[field], bool) or not isinstance(record[field], types):
                _fail(f"the field '{field}' must be a string, got {record[field]!r}", source, number)
        yield number, str(record[name]), record["text"].strip()


def _tsv_queries(lines: list[tuple[int, str]], source: str) -> Iterator[tuple[int, str, str]]:
    for number, line in lines:
        parts = line.split("\t")
        if len(parts) != 2:
            _fail(f"has {_columns(len(parts))} separated by tabs, a query has 2: id TAB text", source, number)
        yield number, parts[0].strip(), parts[1].strip()


def _topics(lines: list[tuple[int, str]], source: str) -> Iterator[tuple[int, str, str]]:
    """Topics as TREC writes them: <num> and <title> in <top>, among others. Only </top> must close what it opens."""
    topic: dict[str, list[str]] | None = None
    started, tag = 0, ""
    for number, line in lines:
        position = 0
        for match in (*_TAG.finditer(line), None):
            if topic is not None and tag:
                topic[tag].append(line[position : match.start() if match else len(line)])
            if match is None:
                continue
            position, closes, name = match.end(), bool(match[1]), match[2].lower()
            if name == "top":
                if closes == (topic is None):
                    open_one = f"the topic of line {started} is not closed by </top>"
                    _fail("</top> closes no topic" if closes else open_one, source, number)
                if topic is not None:
                    yield started, *_topic(topic, source, started)
                topic, started, tag = None if closes else {}, number, ""
            elif topic is not None:
                tag = name if name in _TOPIC_PREFIXES and not closes else ""
                if tag in topic:
                    _fail(f"the topic of line {started} has a second <{tag}>", source, number)
                if tag:
                    topic[tag] = []
    if topic is not None:
        _fail("the topic is not closed by </top>", source, started)
    if not started:
        _fail("looks like TREC topics, but has no <top>", source, lines[0][0])


def _topic(topic: Mapping[str, list[str]], source: str, line: int) -> tuple[str, str]:
    values = []
    for tag, prefix in _TOPIC_PREFIXES.items():
        if tag not in topic:
            _fail(f"the topic has no <{tag}>", source, line)
        text = " ".join(" ".join(topic[tag]).split()).removeprefix(prefix).strip()
        values.append(_ENTITY.sub(lambda match: html.unescape(match[0]), text))
    return values[0], values[1]


def _columns(count: int) -> str:
    return "1 column" if count == 1 else f"{count} columns"


def _fail(problem: str, source: str, line: int) -> NoReturn:
    raise InputError(problem, source=source, line=line)
