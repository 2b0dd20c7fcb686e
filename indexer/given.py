"""What records bring beside their text: vectors, from a .npy file or from a field, and metadata in one object."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from indexer.errors import InputError
from indexer.records import Document, FloatArray


def with_vectors(documents: Iterable[Document], path: str | Path) -> Iterator[Document]:
    """Each document with its row of a .npy file: floats (n, dimension), n the number of documents.

    The file is mapped, not read whole. Raises `InputError` where it is no such file, or n is another number.
    """
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or "it is not a .npy file of numbers"
        raise InputError(f"cannot be read: {reason}", source=str(path)) from error
    if not isinstance(table, np.ndarray):
        table.close()
        raise InputError("cannot be read: it holds several arrays (.npz)", source=str(path))
    if table.ndim != 2 or table.dtype.kind != "f":
        raise InputError(f"holds {table.dtype} of shape {table.shape}, not one row of floats each", source=str(path))
    number = 0
    for number, document in enumerate(documents, start=1):
        if number > len(table):
            raise InputError(f"has {len(table):,} rows, but there are more documents", source=str(path))
        yield replace(document, vector=as_vector(table[number - 1], f"{path}, row {number}"))
    if number < len(table):
        raise InputError(f"has {len(table):,} rows, but there are only {number:,} documents", source=str(path))


def with_vector_field(documents: Iterable[Document], field: str) -> Iterator[Document]:
    """Each document with the vector in a field of its metadata, an array of numbers, which is taken out of there."""
    for document in documents:
        place = f"document '{document.id}'"
        value = document.metadata.get(field)
        if not isinstance(value, list) or not value or not all(type(x) in (int, float) for x in value):
            raise InputError("is not an array of numbers", source=place, field=field)
        metadata = {name: inner for name, inner in document.metadata.items() if name != field}
        yield replace(document, metadata=metadata, vector=as_vector(value, f"{place}, field '{field}'"))


def with_metadata_field(documents: Iterable[Document], field: str) -> Iterator[Document]:
    """Each document with one field of its metadata as all of it: an object, or JSON text of one. All else is left out.

    So comes back what `indexer export` wrote. A document without the field has no metadata. Raises `InputError`.
    """
    for document in documents:
        value = document.metadata.get(field)
        if isinstance(value, str):
            with suppress(ValueError, RecursionError):
                value = json.loads(value)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise InputError("is not an object", source=f"document '{document.id}'", field=field)
        yield replace(document, metadata=value)


def as_vector(values: npt.ArrayLike, place: str) -> FloatArray:
    """fp32 (dimension,). Raises `InputError` that names the place, for what has another shape or no direction."""
    if isinstance(values, np.ndarray) and values.dtype == np.float32:
        vector: FloatArray = values
    else:
        with np.errstate(over="ignore"):  # to infinity, which is refused below
            vector = np.asarray(values, dtype=np.float32)
    if vector.ndim != 1 or not vector.size:
        raise InputError(f"the vector has shape {vector.shape}, not (dimension,)", source=place)
    if 0.0 < float(vector @ vector) < np.inf:  # the usual case, in one pass
        return vector
    if not np.isfinite(vector).all():
        raise InputError("the vector holds NaN or infinity", source=place)
    if not vector.any():
        raise InputError("the vector is zero: it has no direction to compare", source=place)
    return vector
