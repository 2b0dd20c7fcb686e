"""Data for bench_search.py: real embeddings, computed once, perturbed ones to fill up, filters, and the exact answers.

Everything is kept in a cache folder, in pieces, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

if TYPE_CHECKING:
    from indexer.model import TextModel

Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]
Integers = npt.NDArray[np.int64]

DIMENSION = 1536
QUERIES = 200
K = 10
SELECTIVITIES = (1.0, 0.5, 0.1, 0.01, 0.001, 0.0001)
KINDS = ("independent", "near", "far")
"""How a filter is related to the query: not at all; its own neighbourhood; the neighbourhood farthest from it."""

# Texts taken from each collection: the shorter ones more often, so that 200,000 passages take minutes, not hours.
SOURCES = {
    "oewn": ("oewn/oewn-synsets.jsonl.xz", 107_525),
    "wiki-en": ("wiki-en/wiki-paragraphs.jsonl.xz", 92_000),
    "acl-anthology": ("acl-anthology/acl-2016-2024.jsonl.xz", 2_000),
}
PIECE = 4_096  # texts embedded between two saves
BLOCK = 16_384  # vectors held in fp32 at a time
SHIFT = 0.35  # how far a perturbed vector lies from its original, in the direction from one real vector to another
CELLS = 2_000  # clusters of the space, in an order in which neighbours are near


@dataclass(frozen=True, slots=True)
class Range:
    """The filter low ≤ column < high."""

    column: str
    low: int
    high: int


@dataclass(frozen=True)
class Dataset:
    """What every engine gets.

    - `vectors`: fp16 (n, dimension), of length 1 up to rounding; `queries`: fp32 (QUERIES, dimension), not among them.
    - `columns`: two integers for each vector, each a permutation of 0 … n − 1: `chance` has nothing to do with the
      vector, `place` is nearly the same for near vectors.
    - `places`: the `place` of the vector nearest to each query.
    """

    vectors: Halves
    queries: Floats
    columns: dict[str, Integers]
    places: Integers
    truth: dict[str, npt.NDArray[Any]]
    tags: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.vectors)

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """Vectors in fp32, some at a time, with the number of the first."""
        for start in range(0, len(self), BLOCK):
            yield start, self.vectors[start : start + BLOCK].astype(np.float32)

    def filter(self, kind: str, share: float, query: int) -> Range | None:
        """The filter of a kind that lets this share of the vectors through; `None` for all."""
        return None if share == 1.0 else _filter(len(self), int(self.places[query]), kind, share)

    def mask(self, where: Range | None) -> npt.NDArray[np.bool_]:
        """Which vectors a filter lets through."""
        if where is None:
            return np.ones(len(self), dtype=bool)
        values = self.columns[where.column]
        return (values >= where.low) & (values < where.high)


def _filter(n: int, place: int, kind: str, share: float) -> Range:
    """The space cut into 1 / share equal cells: the query's, the one half the space away, or the first by chance."""
    width = max(K, round(n * share))
    cells = n // width
    if kind == "independent":
        return Range("chance", 0, width)
    cell = min(place // width, cells - 1)
    if kind == "far":
        cell = (cell + cells // 2) % cells
    return Range("place", cell * width, (cell + 1) * width)


def texts(data: Path) -> Iterator[str]:
    """Real texts of all collections."""
    for name, limit in SOURCES.values():
        with lzma.open(data / name, "rt", encoding="utf-8") as lines:
            for line in islice(lines, limit):
                record = json.loads(line)
                if text := (record.get("text") or record.get("abstract") or record.get("definition")):
                    yield text


def embed(data: Path, cache: Path, *, model: TextModel, part: int = 0, parts: int = 1) -> None:
    """Embed and tag every text; each passage of a long one is a vector of its own. Goes on where it was stopped.

    Several processes can share the work: each takes every `parts`-th piece, from number `part` on.
    """
    folder = cache / "real"
    folder.mkdir(parents=True, exist_ok=True)
    iterator = texts(data)
    for number in tqdm(range(-(-sum(limit for _, limit in SOURCES.values()) // PIECE)), desc="embedding"):
        piece = list(islice(iterator, PIECE))
        target = folder / f"{number:04d}.npz"
        if number % parts != part or target.exists() or not piece:
            continue
        vectors, tags = [], []
        for text, analysis in zip(piece, model.analyse(piece), strict=True):
            for passage, vector in zip(analysis.passages, analysis.vectors, strict=True):
                vectors.append(vector / np.linalg.norm(vector))
                inside = [s for s in analysis.spans if passage.start <= s.start and s.end <= passage.end]
                tags.append(
                    {
                        "text": text[passage.start : passage.end],
                        "label": None if analysis.label is None else [analysis.label.name, analysis.label.score],
                        "spans": [[s.type, s.start - passage.start, s.end - passage.start, s.score] for s in inside],
                    }
                )
        temporary = target.with_suffix(".part.npz")
        np.savez(temporary, vectors=np.stack(vectors).astype(np.float16), tags=json.dumps(tags))
        temporary.rename(target)


def load_real(cache: Path) -> tuple[Halves, list[dict[str, Any]]]:
    """All real vectors with their texts and tags."""
    vectors, tags = [], []
    for file in sorted((cache / "real").glob("????.npz")):
        with np.load(file) as piece:
            vectors.append(piece["vectors"])
            tags += json.loads(str(piece["tags"]))
    if not vectors:
        raise SystemExit(f"Error: {cache} holds no embeddings: run 'embed' first")
    return np.concatenate(vectors), tags


def prepare(cache: Path, n: int) -> Dataset:
    """The data set of n vectors, made or read from the cache."""
    real, tags = load_real(cache)
    random = np.random.default_rng(7)
    order = random.permutation(len(real))
    held_out, kept = order[:QUERIES], order[QUERIES:]
    queries = real[held_out].astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    folder = cache / str(n)
    folder.mkdir(exist_ok=True)
    origins = np.concatenate([kept, random.choice(kept, size=max(0, n - len(kept)))])[:n]
    file = folder / "vectors.npy"
    if not file.exists():
        table = np.lib.format.open_memmap(
            file.with_suffix(".part"), mode="w+", dtype=np.float16, shape=(n, real.shape[1])
        )
        for start in tqdm(range(0, n, BLOCK), desc="vectors"):
            at = origins[start : start + BLOCK]
            block = real[at].astype(np.float32)
            one, other = (real[random.choice(kept, size=len(at))].astype(np.float32) for _ in range(2))
            copies = np.arange(start, start + len(at)) >= len(kept)
            block[copies] += SHIFT * (one - other)[copies]
            table[start : start + len(at)] = block / np.linalg.norm(block, axis=1, keepdims=True)
        table.flush()
        file.with_suffix(".part").rename(file)
    vectors = np.load(file, mmap_mode="r")
    columns_file = folder / "columns.npz"
    if not columns_file.exists():
        place = _places(vectors, random)
        np.savez(columns_file, chance=np.random.default_rng(8).permutation(n), place=place)
    with np.load(columns_file) as stored:
        columns = {name: stored[name].astype(np.int64) for name in stored.files}
    truth_file = folder / "truth.npz"
    if not truth_file.exists():
        np.savez(truth_file, **_truth(vectors, queries, columns))  # type: ignore[arg-type]
    with np.load(truth_file) as stored:
        truth = {name: stored[name] for name in stored.files}
    return Dataset(vectors, queries, columns, truth["places"], truth, [tags[at] for at in origins])


def _places(vectors: Halves, random: np.random.Generator) -> Integers:
    """A rank of each vector such that near vectors have near ranks: clusters, in line from neighbour to neighbour."""
    import faiss

    sample = vectors[np.sort(random.choice(len(vectors), size=min(len(vectors), 40 * CELLS), replace=False))]
    kmeans = faiss.Kmeans(vectors.shape[1], min(CELLS, len(sample) // 39 + 1), niter=6, seed=1, spherical=True)
    kmeans.train(sample.astype(np.float32))
    centres = kmeans.centroids
    line, left = [0], set(range(1, len(centres)))
    while left:  # greedily from each centre to the nearest that is left
        rest = np.fromiter(left, dtype=np.int64)
        nearest = int(rest[np.argmax(centres[rest] @ centres[line[-1]])])
        line.append(nearest)
        left.remove(nearest)
    rank = np.empty(len(centres), dtype=np.int64)
    rank[line] = np.arange(len(line))
    cluster, closeness = np.empty(len(vectors), dtype=np.int64), np.empty(len(vectors), dtype=np.float32)
    for start in tqdm(range(0, len(vectors), BLOCK), desc="places"):
        scores = vectors[start : start + BLOCK].astype(np.float32) @ centres.T
        cluster[start : start + BLOCK] = rank[scores.argmax(axis=1)]
        closeness[start : start + BLOCK] = scores.max(axis=1)
    places = np.empty(len(vectors), dtype=np.int64)
    places[np.lexsort((-closeness, cluster))] = np.arange(len(vectors))
    return places


def _truth(vectors: Halves, queries: Floats, columns: dict[str, Integers]) -> dict[str, npt.NDArray[Any]]:
    """For each filter of each query the score of the tenth best vector, by exact search, and how many it lets through.

    An answer counts as right if its score reaches that of the tenth best, so that ties do not matter.
    """
    n = len(vectors)
    scores = np.empty((len(queries), n), dtype=np.float32)
    for start in tqdm(range(0, n, BLOCK), desc="truth"):
        scores[:, start : start + BLOCK] = queries @ vectors[start : start + BLOCK].astype(np.float32).T
    places = columns["place"][scores.argmax(axis=1)]
    truth: dict[str, npt.NDArray[Any]] = {"places": places}
    for kind, share in cells():
        rows = []
        for number, row in enumerate(scores):
            allowed = row
            if share < 1.0:
                where = _filter(n, int(places[number]), kind, share)
                values = columns[where.column]
                allowed = row[(values >= where.low) & (values < where.high)]
            count = min(K, len(allowed))
            rows.append([np.partition(allowed, len(allowed) - count)[len(allowed) - count], count])
        truth[f"{kind} {share}"] = np.array(rows, dtype=np.float64)
    return truth


def cells() -> Sequence[tuple[str, float]]:
    """All filters: (kind, selectivity); without a filter there is one kind only."""
    return [("independent", 1.0), *((kind, share) for kind in KINDS for share in SELECTIVITIES if share < 1.0)]
