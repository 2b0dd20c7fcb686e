"""A deterministic stand-in for the model, an index's reference in plain Python, and what the tests share."""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.codes import CodeSpace
from indexer.fields import flatten
from indexer.records import Analysis, Document, FloatArray, Label, Metadata, Passage, Span
from indexer.segments import Block, open_segment, write_segment
from indexer.settings import settings_of, settings_of_vectors
from indexer.store import Entry, IndexWriter
from indexer.stored import read_documents, sum_digests
from indexer.vectors import Segment

if TYPE_CHECKING:
    from indexer.model import TextModel

LABELS = ("sport", "science", "music")
LABEL_OF = {"ball": "sport", "race": "sport", "atom": "science", "cell": "science", "song": "music"}
TYPES = ("PER", "ORG", "LOC")


class DemoAnalyser:
    """Implements `settings.Analyser` by rules that a test can predict.

    A passage is `passage_words` words long, and its vector the mean of its words' vectors, which follow from a
    hash. Capitalised words are entities: PER from A to I, ORG from J to R, LOC from S to Z. The first word that
    stands in `LABEL_OF` gives the class; without one it abstains. `analysed` collects the texts that were given.
    """

    def __init__(
        self, *, dimension: int = 16, passage_words: int = 8, name: str = "demo", seed: int = 0, heads: bool = True
    ) -> None:
        self.name = name
        self.dimension = dimension
        self.passage_words = passage_words
        self.seed = seed
        self.fingerprint = hashlib.sha256(f"{dimension} {passage_words} {seed}".encode()).hexdigest()
        self.heads_fingerprint = hashlib.sha256(b"heads").hexdigest() if heads else None
        self.class_labels = LABELS if heads else None
        self.entity_types = TYPES if heads else None
        self.analysed: list[str] = []

    def analyse(self, texts: Sequence[str], *, tags: bool = True) -> list[Analysis]:
        self.analysed += texts
        return [self._analyse(text, tags=tags and self.class_labels is not None) for text in texts]

    def analyse_in_steps(self, texts: Sequence[str], *, tags: bool = True) -> Iterator[list[Analysis] | None]:
        """Gives way once for every thousand characters."""
        for _ in range(sum(map(len, texts)) // 1_000):
            yield None
        yield self.analyse(texts, tags=tags)

    def vector(self, text: str) -> FloatArray:
        """The embedding of a whole text, fp32 (dimension,)."""
        return self._analyse(text, tags=False).pooled

    def _analyse(self, text: str, *, tags: bool) -> Analysis:
        words = list(re.finditer(r"\w+", text)) or list(re.finditer(r".+", text, re.DOTALL))
        table = np.stack([_word_vector(self.seed, word.group(), self.dimension) for word in words])
        parts = [words[at : at + self.passage_words] for at in range(0, len(words), self.passage_words)]
        starts = [0, *(part[0].start() for part in parts[1:])]
        ends = [*(part[-1].end() for part in parts[:-1]), len(text)]
        rows = [table[at : at + self.passage_words].mean(axis=0) for at in range(0, len(words), self.passage_words)]
        label = next((LABEL_OF[word.group()] for word in words if word.group() in LABEL_OF), None) if tags else None
        return Analysis(
            passages=tuple(
                Passage(start, end, len(part)) for start, end, part in zip(starts, ends, parts, strict=True)
            ),
            vectors=np.stack(rows).astype(np.float32),
            pooled=table.mean(axis=0).astype(np.float32),
            label=None if label is None else Label(label, 0.75),
            spans=tuple(
                Span(TYPES[(ord(word.group()[0]) - 65) // 9], word.start(), word.end(), 0.5)
                for word in words
                if tags and "A" <= word.group()[0] <= "Z"
            ),
        )


@lru_cache(maxsize=10_000)
def _word_vector(seed: int, word: str, dimension: int) -> FloatArray:
    digest = hashlib.blake2b(f"{seed} {word}".encode(), digest_size=8).digest()
    vector = np.random.default_rng(int.from_bytes(digest, "little")).normal(size=dimension).astype(np.float32)
    vector.flags.writeable = False
    return vector


def as_text_model(analyser: DemoAnalyser) -> TextModel:
    """A `TextModel` that answers as the analyser does, for the callers that ask for one."""
    from indexer.model import TextModel

    class DemoTextModel(TextModel):
        dimension = class_labels = entity_types = None  # instance attributes, not the properties of TextModel
        pooled_layers = (-1, -3)  # as if the first half of a vector came from the last layer

        def __init__(self) -> None:
            self.name, self.fingerprint = analyser.name, analyser.fingerprint
            self.heads_fingerprint, self.dimension = analyser.heads_fingerprint, analyser.dimension
            self.class_labels, self.entity_types = analyser.class_labels, analyser.entity_types
            self.analyse, self.analyse_in_steps = analyser.analyse, analyser.analyse_in_steps
            self.batch_tokens = 512

        def part_vectors(self, texts: Sequence[str], parts: Sequence[Sequence[tuple[int, int]]]) -> list[FloatArray]:
            return [
                np.stack([analyser.vector(text[start:end]) for start, end in own])
                for text, own in zip(texts, parts, strict=True)
            ]

    return DemoTextModel()


def entries(documents: Iterable[Document], analyser: DemoAnalyser, *, tags: bool = True) -> list[Entry]:
    """What the store is given for new or changed texts."""
    wanted = list(documents)
    analyses = analyser.analyse([document.text for document in wanted], tags=tags)
    return [Entry(document, analysis) for document, analysis in zip(wanted, analyses, strict=True)]


def build_index(
    path: Path, documents: Iterable[Document], analyser: DemoAnalyser | None = None, *, seal: bool = False
) -> Path:
    """An index of these documents, closed; with `seal` all vectors are in one segment."""
    model = analyser or DemoAnalyser()
    with IndexWriter(path, create=settings_of(model)) as writer:
        for start in range(0, len(wanted := list(documents)), 500):
            writer.write(entries(wanted[start : start + 500], model))
        if seal:
            writer.seal()
    return path


def unit_fp16(vectors: FloatArray) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Vectors as an index keeps them, by the plain formula: divided by their length, rounded to fp16; fp64."""
    exact = vectors.astype(np.float64)
    unit = (exact / np.sqrt((exact**2).sum(axis=1, keepdims=True))).astype(np.float32)
    return unit.astype(np.float16).astype(np.float64)


def passage_scores(
    documents: Mapping[str, str], query: FloatArray, analyser: DemoAnalyser
) -> dict[tuple[str, int], float]:
    """Brute force: the cosine of every passage, by (id, start of the passage)."""
    exact = query.astype(np.float64)
    unit = (exact / np.linalg.norm(exact)).astype(np.float32).astype(np.float64)
    scores = {}
    for id_, text in documents.items():
        analysis = analyser._analyse(text, tags=False)
        for passage, row in zip(analysis.passages, unit_fp16(analysis.vectors), strict=True):
            scores[id_, passage.start] = float(np.clip(row @ unit, -1.0, 1.0))
    return scores


def document_scores(documents: Mapping[str, str], query: FloatArray, analyser: DemoAnalyser) -> dict[str, float]:
    """Brute force: the score of every document, that of its best passage."""
    best: dict[str, float] = {}
    for (id_, _), score in passage_scores(documents, query, analyser).items():
        best[id_] = max(score, best.get(id_, -2.0))
    return best


def clustered(rows: int, *, dimension: int = 32, clusters: int = 20, seed: int = 0) -> FloatArray:
    """Rows of length 1 around random centres, fp32 (rows, dimension): real embeddings are no sphere either."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(clusters, dimension))
    table = centres[random.integers(clusters, size=rows)] + 0.7 * random.normal(size=(rows, dimension))
    return (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)


def vector_entries(
    vectors: FloatArray,
    *,
    first: int = 0,
    metadata: Callable[[int], Metadata] = lambda number: {"n": number},
    text: str = "",
) -> list[Entry]:
    """Documents d<first>, d<first + 1>, … with one given vector each."""
    numbers = range(first, first + len(vectors))
    return [
        Entry(
            Document(f"d{number}", text, metadata(number), vector=row),
            Analysis((Passage(0, len(text), 0),), row[None], row, None, ()),
        )
        for number, row in zip(numbers, vectors, strict=True)
    ]


def build_vector_index(path: Path, vectors: FloatArray, *, batch: int = 500, **options: Any) -> Path:
    """An index of given vectors, closed, without a model; `options` go to `vector_entries`."""
    with IndexWriter(path, create=settings_of_vectors(vectors.shape[1])) as writer:
        for start in range(0, len(vectors), batch):
            writer.write(vector_entries(vectors[start : start + batch], first=start, **options))
    return path


def written_segment(
    folder: Path,
    vectors: FloatArray,
    *,
    name: str = "0000000001",
    first_vid: int = 1,
    docs: Sequence[int] | None = None,
    space: CodeSpace | None = None,
) -> Segment:
    """A segment with vids from `first_vid` on, written and opened; document 100 + n has its n-th vector."""
    vids = np.arange(first_vid, first_vid + len(vectors), dtype=np.int64)
    owners = np.arange(100, 100 + len(vectors)) if docs is None else np.asarray(docs)
    block = Block(vids, owners.astype(np.int64), vectors.astype(np.float16))
    record = write_segment(folder, name, [block], dimension=vectors.shape[1], space=space)
    return open_segment(folder, record, dimension=vectors.shape[1])


def table_rows(path: Path, table: str) -> list[tuple[Any, ...]]:
    """All rows of a table of an index, in the order of its primary key."""
    with closing(sqlite3.connect(f"file:{path}/meta.sqlite?mode=ro", uri=True)) as connection:
        return sorted(connection.execute(f"SELECT * FROM {table}").fetchall())


def check_consistent(path: Path) -> None:
    """What must hold after every commit: the commit row, vectors and fields all follow from the other tables."""
    with closing(sqlite3.connect(f"file:{path}/meta.sqlite?mode=ro", uri=True)) as connection:
        connection.execute("BEGIN")

        def column(sql: str) -> list[Any]:
            return [row[0] for row in connection.execute(sql)]

        documents = read_documents(connection, column("SELECT doc FROM documents"))
        fields = {
            (name, kind, value, doc)
            for name, kind, value, doc in connection.execute(
                "SELECT name, kind, value, doc FROM fields JOIN paths USING (path)"
            )
        }
        assert fields == {
            (name, int(kind), value, stored.doc)
            for stored in documents.values()
            for name, kind, value in flatten(stored.metadata)
        }
        (commit,) = connection.execute("SELECT documents, passages, entities, fields, digest_sum FROM commits")
        assert commit == (
            len(documents),
            sum(len(stored.passages) for stored in documents.values()),
            sum(len(stored.spans) for stored in documents.values()),
            len(fields),
            sum_digests(bytes(16), added=(stored.digest() for stored in documents.values())),
        )
        assert column("SELECT DISTINCT doc FROM entities WHERE doc NOT IN (SELECT doc FROM documents)") == []
        assert sorted(column("SELECT doc FROM pooled")) == sorted(
            stored.doc for stored in documents.values() if len(stored.passages) > 1
        )
        vids = set(column("SELECT vid FROM passages"))
        pending = set(column("SELECT vid FROM pending"))
        sealed: set[int] = set()
        for (name,) in connection.execute("SELECT name FROM segments"):
            sealed |= set(np.load(path / "segments" / f"{name}.ids.npy")[0].tolist())
        removed = set(column("SELECT vid FROM changes WHERE op = 'remove'"))
        assert not pending & sealed
        assert vids == (pending | sealed) - removed


def save_tiny_model(folder: Path, *, seed: int = 0, heads: bool = True) -> Path:
    """A model folder for the command lines: BERT with 4 layers of width 32, random weights, 3 classes, 5 types."""
    from models import multi_task, tiny

    from indexer.checkpoint import save_checkpoint

    save_checkpoint(multi_task(seed=seed) if heads else tiny(seed=seed), folder)
    return folder


class InterruptedCommits:
    """A connection whose next `COMMIT` is followed by an interrupt, as when Ctrl-C comes while SQLite syncs.

    Python calls the handler of a signal when the C function that it came in has returned: the commit is done then.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._armed = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        """As the connection does it."""
        cursor = self._connection.execute(statement, *values)
        if self._armed and statement == "COMMIT":
            self._armed = False
            raise KeyboardInterrupt
        return cursor
