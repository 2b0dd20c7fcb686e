"""One bit per dimension: RaBitQ codes of a segment's vectors, of which a part is packed and stays in memory.

Gao and Long 2024, "RaBitQ: Quantizing High-Dimensional Vectors with a Theoretical Error Bound". Its estimates are
unbiased only for vectors that were rotated at random; without the rotation, recall on real embeddings falls by half.
The rotation and the centre are drawn once for each index, so that codes of several segments can be put together
without computing them again, and estimates of several segments compare.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from indexer.durable import sync, write_file, write_npy
from indexer.errors import CorruptIndexError, StorageError
from indexer.records import FloatArray

Codes = npt.NDArray[np.uint8]
"""RaBitQ codes, uint8 (n, bytes): the bits of a vector, and two numbers in fp32."""

Positions = npt.NDArray[np.int64]

PackedCodes = faiss.IndexIVFRaBitQFastScan
"""Codes for searching, in blocks of 32 whose bits lie side by side, so that one instruction looks at all 32 (André,
Kermarrec and Le Scouarnec 2015, "Cache locality is not enough: High-Performance Nearest Neighbor Search with Product
Quantization Fast Scan"). One inverted list, whose centroid is the centre or its first components, as FAISS's flat index
of this kind takes no selector.
"""

# Of vectors with so many dimensions only a third of the bits are packed, or half of these where that is more: after a
# random rotation one part tells as much as another. What it finds, so many times as many codes as are asked for, is
# judged by all bits.
PARTS_FROM = 768
SHORTLIST = 16
FEW = 12  # Where one code in so many is allowed, or fewer, these alone are looked at, with all their bits.

ROTATION_SEED = 20_240_613
ROUNDS = 2
_BLOCK = 128  # vectors that are rotated at a time, and stay in the processor's cache
_CACHED = 4_096  # codes that are copied at a time


@dataclass(frozen=True)
class CodeSpace:
    """What all codes of an index share: a rotation, made of small ones, and a centre.

    With dimension = a · b, a round changes signs, then rotates each run of b components and, across the runs, each of
    the b groups of a: a rotation by a Kronecker product, at a cost of d · (a + b) instead of d². Two rounds spread
    a vector as evenly as one dense random rotation does.

    - `signs`: ±1, fp32 (ROUNDS, dimension); `left`, `right`: orthogonal, fp32 (ROUNDS, a, a) and (ROUNDS, b, b).
    - `centre`: fp32 (dimension,), the mean of rotated vectors.
    """

    signs: FloatArray
    left: FloatArray
    right: FloatArray
    centre: FloatArray

    @property
    def dimension(self) -> int:
        """Of vectors before and after rotation."""
        return len(self.centre)

    @property
    def shortlist(self) -> int:
        """How many times as many codes as are wanted a scan must give: 1 where all bits are packed."""
        return 1 if packed_bits(self.dimension) == self.dimension else SHORTLIST

    def rotate(self, vectors: FloatArray) -> FloatArray:
        """Rotated vectors, fp32 (n, dimension)."""
        return _rotate(vectors, self.signs, self.left, self.right)

    def encode(self, vectors: npt.NDArray[np.float16]) -> Codes:
        """Codes of vectors, fp16 (n, dimension), in their order."""
        index = self._coder
        codes = np.empty((len(vectors), code_bytes(self.dimension)), dtype=np.uint8)
        for start in range(0, len(vectors), _BLOCK):
            rotated = self.rotate(vectors[start : start + _BLOCK].astype(np.float32))
            codes[start : start + _BLOCK] = index.sa_encode(rotated)
        return codes

    def pack(self, codes: Codes) -> PackedCodes:
        """The bits of codes that are scanned, in the order of the codes."""
        bits = packed_bits(self.dimension)
        centroid = faiss.IndexFlatIP(bits)
        centroid.add(self.centre[None, :bits])
        plain: Any = faiss.IndexIVFRaBitQ(centroid, bits, 1, faiss.METRIC_INNER_PRODUCT)
        plain.is_trained = True
        codes, ids = np.ascontiguousarray(self._first_bits(codes, bits)), np.arange(len(codes), dtype=np.int64)
        plain.invlists.add_entries(0, len(codes), faiss.swig_ptr(ids), faiss.swig_ptr(codes))
        plain.ntotal = len(codes)
        # It refers to the two indexes above until it has been written and read.
        packed: PackedCodes = faiss.deserialize_index(faiss.serialize_index(faiss.IndexIVFRaBitQFastScan(plain)))  # type: ignore[assignment]
        return packed

    def best(self, codes: Codes, rotated: FloatArray, n: int) -> tuple[FloatArray, Positions]:
        """For each query, fp32 (queries, dimension), the n best codes by all their bits, or all where there are fewer.

        Estimates, fp32 (queries, n), falling, and positions, int64 (queries, n).
        """
        index = self._new_coder()
        index.add_sa_codes(codes)
        found: tuple[FloatArray, Positions] = index.search(rotated, min(n, len(codes)))
        return found

    def _first_bits(self, codes: Codes, bits: int) -> Codes:
        """Codes of the first components alone, as if they spoke for all.

        The product of two residuals is estimated as Σ sᵢ qᵢ · f / √d, with the signs s of the vector and its factor f.
        Over the first b components the sum is expected to be b / d of that, and FAISS divides by √b.
        """
        if bits == self.dimension:
            return codes
        factors = codes[:, -8:].copy().view(np.float32)  # |o − c|² − |o|², which stays, and f
        factors[:, 1] *= np.float32(math.sqrt(self.dimension / bits))
        return np.concatenate([codes[:, : bits // 8], factors.view(np.uint8)], axis=1)

    def _new_coder(self) -> faiss.IndexRaBitQ:
        index = faiss.IndexRaBitQ(self.dimension, faiss.METRIC_INNER_PRODUCT)
        index.train(self.centre[None])  # the centre of one vector is that vector
        return index

    @cached_property
    def _coder(self) -> faiss.IndexRaBitQ:
        return self._new_coder()


def packed_bits(dimension: int) -> int:
    """How many bits of each code are packed.

    >>> packed_bits(384), packed_bits(768), packed_bits(1024), packed_bits(1536), packed_bits(3072)
    (384, 384, 384, 512, 1024)
    """
    return dimension if dimension < PARTS_FROM else max(PARTS_FROM // 2, 8 * -(-dimension // 24))


def code_bytes(dimension: int) -> int:
    """How many bytes a code takes: its bits, and two numbers in fp32."""
    return -(-dimension // 8) + 8


@dataclass(frozen=True)
class SegmentCodes:
    """The codes of a segment in two forms: `packed`, in memory, to look at all of them, and `plain`, mapped from their
    file, to look at a few with all their bits."""

    packed: PackedCodes
    plain: Codes

    def __len__(self) -> int:
        return len(self.plain)

    def few(self, allowed: int) -> bool:
        """Whether it is better to look at so many codes alone than to scan all of them."""
        return allowed * FEW <= len(self)

    def search(
        self, space: CodeSpace, rotated: FloatArray, n: int, allowed: npt.NDArray[np.bool_] | None = None
    ) -> tuple[FloatArray, Positions]:
        """For each query, fp32 (queries, dimension), the n best allowed codes by all their bits, or all of them.

        Estimates, fp32 (queries, n), falling, and positions, int64 (queries, n). `allowed` bool (rows,); `None`: all.
        """
        estimates, found = self.scan(rotated, n * space.shortlist, allowed)
        if space.shortlist == 1:
            return estimates, found
        best = [self.judge(space, query[None], n, at) for query, at in zip(rotated, found, strict=True)]
        return np.concatenate([part[0] for part in best]), np.concatenate([part[1] for part in best])

    def scan(
        self, rotated: FloatArray, n: int, allowed: npt.NDArray[np.bool_] | None = None
    ) -> tuple[FloatArray, Positions]:
        """As `search`, by the packed bits alone. One pass serves all queries, and gives each what it would have alone.

        Estimates compare with those of other segments of the same space, for the same query.
        """
        count = len(self) if allowed is None else int(np.count_nonzero(allowed))
        only = {} if allowed is None else {"sel": selector(allowed)}
        parameters = faiss.SearchParametersIVF(nprobe=1, **only)  # type: ignore[call-arg]
        if count == 0:  # which FAISS does not take for an answer
            return np.zeros((len(rotated), 0), dtype=np.float32), np.zeros((len(rotated), 0), dtype=np.int64)
        first = np.ascontiguousarray(rotated[:, : self.packed.d])
        estimates, found = self.packed.search(first, min(n, count), params=parameters)
        return estimates, found

    def judge(
        self, space: CodeSpace, rotated: FloatArray, n: int, positions: Positions
    ) -> tuple[FloatArray, Positions]:
        """As `search`, for the codes at these positions, int64 (m,)."""
        positions = np.sort(positions)
        # Copies of so many at a time as stay in the processor's cache.
        parts = [positions[start : start + _CACHED] for start in range(0, len(positions), _CACHED)]
        best = [(at, *space.best(np.take(self.plain, at, axis=0), rotated, n)) for at in parts]
        if len(best) == 1:
            at, estimates, found = best[0]
            return estimates, at[found]
        estimates = np.concatenate([np.zeros((len(rotated), 0), dtype=np.float32), *(part[1] for part in best)], axis=1)
        places = np.concatenate([np.zeros((len(rotated), 0), dtype=np.int64), *(at[of] for at, _, of in best)], axis=1)
        order = np.argsort(-estimates, axis=1, kind="stable")[:, :n]
        return np.take_along_axis(estimates, order, axis=1), np.take_along_axis(places, order, axis=1)


def selector(allowed: npt.NDArray[np.bool_]) -> faiss.IDSelectorBitmap:
    """The positions that are true, for a search of FAISS."""
    # FAISS keeps the array that it is given, so that it lives as long as the selector.
    return faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))  # type: ignore[call-arg, arg-type]


def new_code_space(vectors: npt.NDArray[np.float16]) -> CodeSpace:
    """A rotation, the same for the same dimension, and the centre of a sample of vectors, fp16 (n, dimension)."""
    dimension = vectors.shape[1]
    a, b = factors(dimension)
    random = np.random.default_rng(ROTATION_SEED)
    signs = random.choice(np.array([-1.0, 1.0], dtype=np.float32), size=(ROUNDS, dimension))
    left = np.stack([_orthogonal(random, a) for _ in range(ROUNDS)])
    right = np.stack([_orthogonal(random, b) for _ in range(ROUNDS)])
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    return CodeSpace(signs, left, right, _rotate(mean[None], signs, left, right)[0])


def factors(dimension: int) -> tuple[int, int]:
    """The two factors of a dimension that are nearest to each other, the larger one first.

    >>> factors(1536), factors(3072), factors(7)
    ((48, 32), (64, 48), (7, 1))
    """
    small = next(b for b in range(math.isqrt(dimension), 0, -1) if dimension % b == 0)
    return dimension // small, small


def save_code_space(space: CodeSpace, path: Path) -> str:
    """Write a code space durably; returns the SHA-256 of the file."""
    table = np.concatenate([part.ravel() for part in (space.signs, space.left, space.right, space.centre)])
    write_file(path, lambda file: write_npy(file, table))
    sync(path.parent)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_code_space(path: Path, *, dimension: int) -> CodeSpace:
    """Read a code space. Raises `CorruptIndexError`, `StorageError`."""
    try:
        table = np.load(path, allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError) as error:
        raise CorruptIndexError(f"{path} cannot be read ({type(error).__name__}); run 'indexer verify'") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error
    a, b = factors(dimension)
    ends = np.cumsum([ROUNDS * dimension, ROUNDS * a * a, ROUNDS * b * b, dimension])
    if table.shape != (ends[-1],) or table.dtype != np.float32:
        raise CorruptIndexError(f"{path} holds {table.shape} {table.dtype}; run 'indexer verify'")
    signs, left, right, centre = np.split(table, ends[:-1])
    return CodeSpace(signs.reshape(ROUNDS, dimension), left.reshape(ROUNDS, a, a), right.reshape(ROUNDS, b, b), centre)


def _rotate(vectors: FloatArray, signs: FloatArray, left: FloatArray, right: FloatArray) -> FloatArray:
    n, dimension = vectors.shape
    a, b = left.shape[1], right.shape[1]
    for sign, across, along in zip(signs, left, right, strict=True):
        # A small product for each vector, which BLAS leaves to one thread: there may be a writer beside this one.
        runs = (vectors * sign).reshape(n, a, b) @ along
        vectors = (runs.transpose(0, 2, 1) @ across).reshape(n, dimension)
    result: FloatArray = np.ascontiguousarray(vectors, dtype=np.float32)
    return result


def _orthogonal(random: np.random.Generator, size: int) -> FloatArray:
    """A random rotation or reflection, fp32 (size, size); Mezzadri 2007, "How to generate random matrices …"."""
    orthogonal, triangular = np.linalg.qr(random.standard_normal((size, size)))
    # With positive diagonal the factorisation is unique, so that it does not depend on the library.
    result: FloatArray = (orthogonal * np.sign(np.diag(triangular))).astype(np.float32)
    return result
