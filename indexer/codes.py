"""One bit per dimension: RaBitQ codes of a segment's vectors, small enough to stay in memory.

Gao and Long 2024, "RaBitQ: Quantizing High-Dimensional Vectors with a Theoretical Error Bound". Its estimates are
unbiased only for vectors that were rotated at random; without the rotation, recall on real embeddings falls by half.
The rotation and the centre are drawn once for each index, so that codes of several segments can be put together
without computing them again, and estimates of several segments compare.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

from indexer.durable import sync, write_file, write_npy
from indexer.errors import CorruptIndexError
from indexer.records import FloatArray

ROTATION_SEED = 20_240_613
_BLOCK = 4_096  # vectors that are rotated at a time


@dataclass(frozen=True, slots=True)
class CodeSpace:
    """What all codes of an index share.

    - `rotation`: orthogonal, fp32 (dimension, dimension); a vector v becomes rotation @ v.
    - `centre`: fp32 (dimension,), the mean of rotated vectors.
    """

    rotation: FloatArray
    centre: FloatArray

    @property
    def dimension(self) -> int:
        """Of vectors before and after rotation."""
        return len(self.centre)

    def rotate(self, vectors: FloatArray) -> FloatArray:
        """Rotated vectors, fp32 (n, dimension)."""
        result: FloatArray = np.ascontiguousarray(vectors @ self.rotation.T, dtype=np.float32)
        return result

    def encode(self, vectors: npt.NDArray[np.float16]) -> faiss.IndexRaBitQ:
        """Codes of vectors, fp16 (n, dimension), in their order."""
        index = self.empty()
        for start in range(0, len(vectors), _BLOCK):
            index.add(self.rotate(vectors[start : start + _BLOCK].astype(np.float32)))
        return index

    def empty(self) -> faiss.IndexRaBitQ:
        """An index without codes in this space."""
        index = faiss.IndexRaBitQ(self.dimension, faiss.METRIC_INNER_PRODUCT)
        index.train(self.centre[None])  # the centre of one vector is that vector
        return index


def new_code_space(vectors: npt.NDArray[np.float16]) -> CodeSpace:
    """A rotation, the same for the same dimension, and the centre of a sample of vectors, fp16 (n, dimension)."""
    dimension = vectors.shape[1]
    gaussian = np.random.default_rng(ROTATION_SEED).standard_normal((dimension, dimension))
    orthogonal, triangular = np.linalg.qr(gaussian)
    # With positive diagonal the factorisation is unique, so that it does not depend on the library.
    rotation = (orthogonal * np.sign(np.diag(triangular))).astype(np.float32)
    mean = vectors.mean(axis=0, dtype=np.float64)
    return CodeSpace(rotation, (rotation.astype(np.float64) @ mean).astype(np.float32))


def save_code_space(space: CodeSpace, path: Path) -> str:
    """Write a code space durably; returns the SHA-256 of the file."""
    table = np.concatenate([space.rotation, space.centre[None]])
    write_file(path, lambda file: write_npy(file, table))
    sync(path.parent)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_code_space(path: Path, *, dimension: int) -> CodeSpace:
    """Read a code space. Raises `CorruptIndexError`."""
    try:
        table = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CorruptIndexError(f"{path} cannot be read ({type(error).__name__}); run 'indexer verify'") from error
    if table.shape != (dimension + 1, dimension) or table.dtype != np.float32:
        raise CorruptIndexError(f"{path} holds {table.shape} {table.dtype}; run 'indexer verify'")
    return CodeSpace(table[:-1], table[-1])
