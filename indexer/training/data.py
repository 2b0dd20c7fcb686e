"""Readers of published data sets: files as their authors distribute them → texts, spans, labels and pairs.

Every reader yields raw text, as a user would have written it: what a data set cut into tokens is joined
again.
All offsets are code points into the text, end exclusive.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SENTENCES_OF_A_WINDOW = (2, 5)


class DataError(ValueError):
    """A file that is not in the form that its reader expects."""


@dataclass(frozen=True, slots=True)
class TaggedText:
    """A text and its entities as (type, start, end), sorted, without overlap."""

    text: str
    spans: tuple[tuple[str, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text and the id of its class."""

    text: str
    label: int


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """Two texts and how similar people found them."""

    first: str
    second: str
    score: float


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Documents and queries by id, and for each query its relevant documents with their grades."""

    documents: Mapping[str, str]
    queries: Mapping[str, str]
    relevant: Mapping[str, Mapping[str, float]]


# Tagged tokens


def read_columns(
    path: str | Path,
    *,
    token: int,
    tag: int,
    types: Mapping[str, str] | None = None,
    drop_handles: bool = False,
    separator: str | None = "\t",
    encoding: str = "utf-8",
) -> list[TaggedText]:
    """Read a CoNLL-like file: one token a line in columns separated by tabs, sentences by blank lines.

    With `separator=None`, any white space separates columns. `token` and `tag` are column numbers from 0. A
    `# text = …` comment gives a sentence's raw text; without one, the tokens are joined by `join_tokens`. `types`
    renames the entity types, and those it does not name are dropped. `drop_handles` leaves out tokens such as "@name",
    for data that tags them otherwise than the rest. Raises `DataError` for a line without the columns, and for tokens
    that are not in the raw text.
    """
    texts = []
    for sentence in _sentences(Path(path), columns=max(token, tag) + 1, separator=separator, encoding=encoding):
        tokens, tags = sentence.column(token), sentence.column(tag)
        if drop_handles:
            kept = [index for index, word in enumerate(tokens) if not re.fullmatch(r"@\w+", word)]
            tokens, tags = [tokens[index] for index in kept], [tags[index] for index in kept]
        if not tokens:
            continue
        spans = spans_of_tags(tags)
        if sentence.text is None:
            tokens, spans = merge_handles(tokens, spans)
            text, offsets = join_tokens(tokens)
        else:
            text, offsets = sentence.text, align_tokens(sentence.text, tokens)
        texts.append(
            TaggedText(
                text,
                tuple(
                    (kind if types is None else types[kind], offsets[first][0], offsets[end - 1][1])
                    for kind, first, end in spans
                    if types is None or kind in types
                ),
            )
        )
    return texts


def spans_of_tags(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(type, first token, last token + 1) of tags in IOB1, IOB2, IOBES or BILOU, whichever it is.

    A span starts at B, S and U, and at any other tag whose type is not that of the span still open; it ends
    behind E, L, S and U, and before the next start or O.

    >>> spans_of_tags(["I-PER", "I-PER", "B-PER", "O"])
    [('PER', 0, 2), ('PER', 2, 3)]
    >>> spans_of_tags(["B-ORG", "E-ORG", "S-LOC"])
    [('ORG', 0, 2), ('LOC', 2, 3)]
    """
    spans: list[tuple[str, int, int]] = []
    kind, start = "", 0
    for index, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if prefix not in set("BIESLUO") or (prefix == "O") != (name == ""):
            raise DataError(f"'{tag}' is no tag: expected O, or B-, I-, E-, L-, S- or U- and a type")
        if kind and (prefix in ("O", "B", "S", "U") or name != kind):
            spans.append((kind, start, index))
            kind = ""
        if not kind and prefix != "O":
            kind, start = name, index
        if prefix in ("E", "L", "S", "U"):
            spans.append((kind, start, index + 1))
            kind = ""
    return spans


def align_tokens(text: str, tokens: Sequence[str]) -> list[tuple[int, int]]:
    """Offsets of the tokens in a text that holds them in this order. Raises `DataError` if it does not."""
    offsets, position = [], 0
    for token in tokens:
        start = text.find(token, position)
        if start < 0 or text[position:start].strip():
            raise DataError(f"token '{token}' is not at character {position} of the text: {text[:80]}")
        position = start + len(token)
        offsets.append((start, position))
    return offsets


def merge_handles(
    tokens: Sequence[str], spans: Sequence[tuple[str, int, int]]
) -> tuple[list[str], list[tuple[str, int, int]]]:
    """Join "@" and the name behind it to one token, and their tags, even where each begins a span, to one.

    >>> merge_handles(["RT", "@", "ann", ":"], [("PER", 1, 2), ("PER", 2, 3)])
    (['RT', '@ann', ':'], [('PER', 1, 2)])
    """
    kinds = {index: kind for kind, first, end in spans for index in range(first, end)}
    begins = {first for _, first, _ in spans}
    merged: list[str] = []
    tags: list[str] = []
    index = 0
    while index < len(tokens):
        handle = tokens[index] == "@" and index + 1 < len(tokens) and re.fullmatch(r"\w+", tokens[index + 1])
        tagged = index + 1 if handle and index + 1 in kinds else index
        merged.append("@" + tokens[index + 1] if handle else tokens[index])
        if tagged not in kinds:
            tags.append("O")
        else:
            begin = index in begins or index not in kinds
            tags.append(("B-" if begin else "I-") + kinds[tagged])
        index += 2 if handle else 1
    return merged, spans_of_tags(tags)


_NO_SPACE_BEFORE = re.compile(r"[,.;:!?%)\]}»”’]+|\.\.+|['’](s|m|re|ve|ll|d|S)|n['’]t")
_NO_SPACE_BEHIND = re.compile(r"[(\[{«“‘#$£€@]")


def join_tokens(tokens: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """A text from its tokens, and their offsets: no space before , . ; : ! ? ) 's n't nor behind ( # @.

    >>> join_tokens(["It", "'s", "(", "very", ")", "#", "good", "."])[0]
    "It's (very) #good."
    """
    text, offsets = "", []
    for index, token in enumerate(tokens):
        glued = index == 0 or _NO_SPACE_BEFORE.fullmatch(token) or _NO_SPACE_BEHIND.fullmatch(tokens[index - 1])
        text += token if glued else " " + token
        offsets.append((len(text) - len(token), len(text)))
    return text, offsets


def join_windows(
    texts: Sequence[TaggedText], *, seed: int, sentences: tuple[int, int] = SENTENCES_OF_A_WINDOW
) -> list[TaggedText]:
    """Cut a sequence of texts into runs of `sentences` texts, each run joined by spaces, to the last text.

    The lengths of the runs are drawn evenly; the same seed gives the same runs.
    """
    generator = random.Random(seed)
    windows, position = [], 0
    while position < len(texts):
        run = texts[position : position + generator.randint(*sentences)]
        position += len(run)
        spans: list[tuple[str, int, int]] = []
        start = 0
        for part in run:
            spans.extend((kind, a + start, b + start) for kind, a, b in part.spans)
            start += len(part.text) + 1
        windows.append(TaggedText(" ".join(part.text for part in run), tuple(spans)))
    return windows


# Pairs, labels, retrieval


def read_stsb(path: str | Path) -> list[ScoredPair]:
    """STS benchmark: tab-separated, no quoting; columns 5 to 7 are the score from 0 to 5 and two texts."""
    pairs = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        fields = line.split("\t")
        if len(fields) < 7:
            raise DataError(f"{path}, line {number}: expected at least 7 columns, got {len(fields)}")
        pairs.append(ScoredPair(fields[5], fields[6], float(fields[4])))
    return pairs


def read_dbpedia(path: str | Path) -> list[LabelledText]:
    """DBpedia topics: `label,text` a line, tokenised with spaces, sentences separated by tabs."""
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        label, comma, text = line.partition(",")
        if not comma or not label.isdigit():
            raise DataError(f"{path}, line {number}: expected a class number, a comma and a text")
        rows.append(LabelledText(detokenise(text), int(label)))
    return rows


_DETOKENISE = (
    (re.compile(r"\s+"), " "),
    (re.compile(r" ([,.;:!?%)\]])(?=\s|$|[.,;)\]])"), r"\1"),
    (re.compile(r"([(\[$#]) "), r"\1"),
    (re.compile(r" (n't|'(?:s|m|ve|re|ll|d))\b"), r"\1"),
    (re.compile(r"(\w\w\.)(?=[A-Z]\w)"), r"\1 "),  # sentences that were run together
    (re.compile(r"\([\s,;:]*\)"), ""),  # what stood in the brackets was lost
    (re.compile(r"\s+"), " "),
)


def detokenise(text: str) -> str:
    """Undo the spaces that a tokenizer put around punctuation, as far as that is clear.

    >>> detokenise("Acme ( AC ) is the city 's oldest firm .\\tIt grew .")
    "Acme (AC) is the city's oldest firm. It grew."
    """
    for pattern, replacement in _DETOKENISE:
        text = pattern.sub(replacement, text)
    return text.strip()


def read_beir(folder: str | Path, *, split: str) -> Retrieval:
    """A retrieval set in the form of BEIR: corpus.jsonl (also .xz), queries.jsonl and qrels/<split>.tsv.

    A document is its title and its text, joined by a space; only queries of the split are kept.
    """
    folder = Path(folder)
    corpus = folder / "corpus.jsonl"
    documents = {
        str(row["_id"]): f"{row.get('title', '')} {row['text']}".strip()
        for row in read_jsonl(corpus if corpus.is_file() else folder / "corpus.jsonl.xz")
    }
    relevant: dict[str, dict[str, float]] = {}
    with (folder / "qrels" / f"{split}.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if float(row["score"]) > 0:
                relevant.setdefault(row["query-id"], {})[row["corpus-id"]] = float(row["score"])
    queries = {
        str(row["_id"]): str(row["text"]) for row in read_jsonl(folder / "queries.jsonl") if str(row["_id"]) in relevant
    }
    return Retrieval(documents, queries, relevant)


def read_jsonl(path: str | Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file, decompressed if its name ends in .xz."""
    with open_text(Path(path)) as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def read_csv_column(path: str | Path, column: str, *, delimiter: str = ",") -> list[str]:
    """One column of a CSV file with a header, without its empty cells."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter=delimiter)
        if rows.fieldnames is None or column not in rows.fieldnames:
            raise DataError(f"{path} has no column '{column}', only {', '.join(rows.fieldnames or [])}")
        return [row[column] for row in rows if row[column]]


@dataclass(frozen=True, slots=True)
class _Sentence:
    rows: list[list[str]]
    text: str | None

    def column(self, index: int) -> list[str]:
        return [row[index] for row in self.rows]


def _sentences(path: Path, *, columns: int, separator: str | None, encoding: str) -> Iterator[_Sentence]:
    rows: list[list[str]] = []
    text: str | None = None
    for number, line in enumerate(_lines(path, encoding), start=1):
        if not line.strip():
            if rows:
                yield _Sentence(rows, text)
            rows, text = [], None
        elif not rows and line.startswith("# "):
            name, equals, value = line[2:].partition(" = ")
            if name == "text" and equals:
                text = value
        else:
            fields = line.split(separator)
            if len(fields) < columns:
                raise DataError(f"{path}, line {number}: expected {columns} columns, got {len(fields)}")
            rows.append(fields)
    if rows:
        yield _Sentence(rows, text)


def _lines(path: Path, encoding: str) -> Iterable[str]:
    # Not splitlines(): it also cuts at characters that tweets hold, such as U+2028 and U+0085.
    with open_text(path, encoding=encoding) as file:
        return file.read().replace("\r\n", "\n").split("\n")


def open_text(path: Path, *, encoding: str = "utf-8", newline: str | None = None) -> io.TextIOBase:
    """A file to read text from, decompressed if its name ends in .xz."""
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding=encoding, newline=newline)
    return path.open(encoding=encoding, newline=newline)
