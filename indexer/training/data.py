"""Readers of published data sets: files as their authors distribute them → texts, spans, labels and pairs.

Every reader yields raw text, as a user would have written it: what a data set cut into tokens is joined
again.
All offsets are code points into the text, end exclusive.
"""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indexer.training.lines import DataError, half_character, numbered_objects, text_lines

SENTENCES_OF_A_WINDOW = (2, 5)


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

    With `separator=None`, any white space separates columns. `token` and `tag` are column numbers from 0. Comments
    stand before a sentence, and are `# name = value`, `# newdoc` or `# newpar`, as in CoNLL-U; where tabs separate
    columns, also any other line that begins with "# " and has none. `# text = …` gives a sentence's raw text; without
    one, the tokens are joined by `join_tokens`. `types` renames the entity types, and those it does not name are
    dropped. `drop_handles` leaves out tokens such as "@name", for data that tags them otherwise than the rest. Raises
    `DataError` for a line without the columns or with another tag than `spans_of_tags` knows, and for tokens that are
    not in the raw text.
    """
    texts = []
    for sentence in _sentences(Path(path), token=token, tag=tag, separator=separator, encoding=encoding):
        tokens, tags = sentence.tokens, sentence.tags
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
            try:
                text, offsets = sentence.text, align_tokens(sentence.text, tokens)
            except DataError as error:
                raise DataError(error.problem, source=str(path), line=sentence.line) from error
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
        prefix, name = _split_tag(tag)
        if kind and (prefix in ("O", "B", "S", "U") or name != kind):
            spans.append((kind, start, index))
            kind = ""
        if not kind and prefix != "O":
            kind, start = name, index
        if prefix in ("E", "L", "S", "U"):
            spans.append((kind, start, index + 1))
            kind = ""
    return spans


def _split_tag(tag: str) -> tuple[str, str]:
    prefix, _, name = tag.partition("-")
    if prefix not in set("BIESLUO") or (prefix == "O") != (name == ""):
        raise DataError(f"'{tag}' is no tag: expected O, or B-, I-, E-, L-, S- or U- and a type")
    return prefix, name


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

    A document is its title, which may be missing or null, and its text, joined by a space; only queries of the split
    are kept. Raises `DataError` for a line that is not so; grades are whole numbers, as nDCG in trec_eval takes them.
    """
    folder = Path(folder)
    corpus = folder / "corpus.jsonl"
    corpus = corpus if corpus.is_file() else folder / "corpus.jsonl.xz"
    documents: dict[str, str] = {}
    for line, row in numbered_objects(corpus):
        title = "" if row.get("title") is None else _beir_text(row, "title", corpus, line)
        documents[_beir_id(row, corpus, line)] = f"{title} {_beir_text(row, 'text', corpus, line)}".strip()
    relevant: dict[str, dict[str, float]] = {}
    for query, document, grade in _read_qrels(folder / "qrels" / f"{split}.tsv"):
        if grade > 0:
            relevant.setdefault(query, {})[document] = grade
    path = folder / "queries.jsonl"
    queries = {
        name: _beir_text(row, "text", path, line)
        for line, row in numbered_objects(path)
        if (name := _beir_id(row, path, line)) in relevant
    }
    return Retrieval(documents, queries, relevant)


def _beir_id(row: Mapping[str, Any], path: Path, line: int) -> str:
    if not isinstance(row.get("_id"), str | int):
        raise DataError(f"an id is missing, got {str(row.get('_id'))[:80]}", source=str(path), line=line, field="_id")
    name = str(row["_id"])
    if problem := half_character(name):
        raise DataError(problem, source=str(path), line=line, field="_id")
    return name


def _beir_text(row: Mapping[str, Any], field: str, path: Path, line: int) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise DataError(f"a text is missing, got {str(value)[:80]}", source=str(path), line=line, field=field)
    if problem := half_character(value):
        raise DataError(problem, source=str(path), line=line, field=field)
    return value


def _read_qrels(path: Path) -> Iterator[tuple[str, str, float]]:
    """The query, the document and the grade of each row."""
    wanted, columns = ("query-id", "corpus-id", "score"), None
    for number, line in text_lines(path):
        cells = line.rstrip("\r\n").split("\t")
        if columns is None:
            if missing := [name for name in wanted if name not in cells]:
                found = ", ".join(cells)
                raise DataError(f"there is no column '{missing[0]}', only {found}"[:300], source=str(path), line=number)
            columns = [cells.index(name) for name in wanted]
        elif line.strip():
            if len(cells) <= max(columns):
                raise DataError(f"expected {max(columns) + 1} columns, got {len(cells)}", source=str(path), line=number)
            query, document, score = (cells[column] for column in columns)
            if not re.fullmatch(r"\s*[+-]?\d{1,9}(\.0*)?\s*", score):
                raise DataError(
                    f"'{score[:80]}' is no grade: expected a whole number", source=str(path), line=number, field="score"
                )
            yield query, document, float(score)


def read_jsonl(path: str | Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file, decompressed if its name ends in .xz. Raises `DataError`."""
    for _, row in numbered_objects(Path(path)):
        yield row


def read_csv_column(path: str | Path, column: str, *, delimiter: str = ",") -> list[str]:
    """One column of a CSV file with a header, without its empty cells."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter=delimiter)
        if rows.fieldnames is None or column not in rows.fieldnames:
            raise DataError(f"{path} has no column '{column}', only {', '.join(rows.fieldnames or [])}")
        return [row[column] for row in rows if row[column]]


@dataclass(frozen=True, slots=True)
class _Sentence:
    """Its tokens and their tags, its raw text if a comment gives it, and the line of its first token."""

    tokens: list[str]
    tags: list[str]
    text: str | None
    line: int


_COMMENT = re.compile(r"# (newdoc|newpar|[\w.:-]+( [\w.:-]+)* =( .*)?)\s*")


def _sentences(path: Path, *, token: int, tag: int, separator: str | None, encoding: str) -> Iterator[_Sentence]:
    columns = max(token, tag) + 1
    rows: list[list[str]] = []
    text: str | None = None
    begin = 0

    def sentence() -> _Sentence:
        return _Sentence([row[token] for row in rows], [row[tag] for row in rows], text, begin)

    # Lines of a file end only where lines do. splitlines() would cut at characters that tweets hold, such as U+2028.
    for number, ended in text_lines(path, encoding=encoding):
        line = ended.removesuffix("\n")
        if not line.strip():
            if rows:
                yield sentence()
            rows, text = [], None
        elif not rows and _is_comment(line, separator):
            name, equals, value = line[2:].partition(" = ")
            if name == "text" and equals:
                text = value
        else:
            begin = begin if rows else number
            fields = line.split(separator)
            if len(fields) < columns:
                spaced = separator is not None and len(line.split()) >= columns
                hint = ": set separator = 'space' where white space is between them" if spaced else ""
                raise DataError(f"expected {columns} columns, got {len(fields)}{hint}", source=str(path), line=number)
            fields[tag] = fields[tag].strip()  # a space behind it would make a type of its own
            try:
                _split_tag(fields[tag])
            except DataError as error:
                raise DataError(error.problem, source=str(path), line=number) from error
            rows.append(fields)
    if rows:
        yield sentence()


def _is_comment(line: str, separator: str | None) -> bool:
    return line.startswith("# ") and (_COMMENT.fullmatch(line) is not None or (separator == "\t" and "\t" not in line))
