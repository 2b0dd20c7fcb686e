"""What records bring beside their text: vectors, from a .npy file or from a field, and metadata in one object."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from tokenize import TokenError

import numpy as np
import numpy.typing as npt

from indexer.errors import InputError
from indexer.fields import shorten, too_deep
from indexer.records import Document, FloatArray, Metadata

# What numpy raises for a header that is damaged or made to do harm; it evaluates literals in it, never code.
_HEADER_ERRORS = (OSError, ValueError, EOFError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError)


def with_vectors(
    documents: Iterable[Document], path: str | Path, *, count: Callable[[], int | None] | None = None
) -> Iterator[Document]:
    """Each document with its row of a .npy file: floats (n, dimension), n the number of documents.

    The file is mapped, not read whole. Raises `InputError` where it is no such file, or n is another number: before
    the first document where `count` knows how many there are, else after the last. One that was left out on one side
    gives all behind it the vectors of others.
    """
    table = np.asarray(_mapped(Path(path)))  # a row of a `memmap` is one, too, which takes longer than the row
    number = count() if count is not None else None
    if number is not None and number != len(table):
        raise InputError(
            f"has {len(table):,} rows, but there are {number:,} documents: it must have one for each, in their order,"
            " also for those without text",
            source=str(path),
        )
    number = 0
    for number, document in enumerate(documents, start=1):
        if number > len(table):
            raise InputError(f"has {len(table):,} rows, but there are more documents", source=str(path))
        yield replace(document, vector=as_vector(table[number - 1], f"{path}, row {number}"))
    if number < len(table):
        raise InputError(f"has {len(table):,} rows, but there are only {number:,} documents", source=str(path))


def with_vector_field(
    documents: Iterable[Document], field: str, *, on_error: Callable[[InputError], None] | None = None
) -> Iterator[Document]:
    """Each document with the vector in a field of its metadata, an array of numbers, which is taken out of there.

    Without `on_error`, the first that has none raises its `InputError`; with it, such documents are passed over.
    """
    for document in documents:
        try:
            yield _with_field(document, field)
        except InputError as error:
            if on_error is None:
                raise
            on_error(error)


def _with_field(document: Document, field: str) -> Document:
    place = f"document '{document.id}'"
    value = document.metadata.get(field)
    if not isinstance(value, list) or not value or not all(type(x) in (int, float) for x in value):
        raise InputError("is not an array of numbers", source=place, field=field)
    metadata = {name: inner for name, inner in document.metadata.items() if name != field}
    return replace(document, metadata=metadata, vector=as_vector(value, f"{place}, field '{field}'"))


def _mapped(path: Path) -> npt.NDArray[np.floating]:
    """The table in a .npy file, mapped. numpy reads its header; what that says is checked before it is believed."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if file.read(4) == b"PK\x03\x04":
                raise InputError("cannot be read: it holds several arrays (.npz)", source=str(path))
            file.seek(0)
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            with warnings.catch_warnings(action="ignore"):  # of headers that Python 2 wrote
                shape, by_column, dtype = read(file)
            start = file.tell()
        if dtype.hasobject or not all(type(length) is int and length >= 0 for length in shape):
            raise ValueError("a pickle, or no shape")
    except _HEADER_ERRORS as error:
        reason = getattr(error, "strerror", None) or "it is not a .npy file of numbers"
        raise InputError(f"cannot be read: {reason}", source=str(path)) from error
    if len(shape) != 2 or dtype.kind != "f":
        raise InputError(f"holds {dtype} of shape {shape}, not one row of floats each", source=str(path))
    if not all(0 < length < 2**63 for length in shape):
        problem = shorten(f"holds {dtype} of shape {shape}: there is no number in it, or no file could hold them", 240)
        raise InputError(problem, source=str(path))
    if (wanted := start + math.prod(shape) * dtype.itemsize) > size:
        raise InputError(
            f"cannot be read: {shape[0]:,} rows of {shape[1]:,} numbers take {wanted:,} bytes, the file has {size:,}",
            source=str(path),
        )
    return np.memmap(path, dtype, mode="r", offset=start, shape=shape, order="F" if by_column else "C")


def with_metadata_field(
    documents: Iterable[Document], field: str, *, on_error: Callable[[InputError], None] | None = None
) -> Iterator[Document]:
    """Each document with one field of its metadata as all of it: an object, or JSON text of one. All else is left out.

    So comes back what `indexer export` wrote, where it was read with this field as `ReadOptions.metadata_field`. A
    document without the field has no metadata. Errors as in `with_vector_field`.
    """
    for document in documents:
        try:
            yield replace(document, metadata=_object_in(document, field))
        except InputError as error:
            if on_error is None:
                raise
            on_error(error)


def _object_in(document: Document, field: str) -> Metadata:
    value, problem = document.metadata.get(field), "is not an object"
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except RecursionError:
            problem = too_deep()
        except ValueError:
            pass
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(problem, source=f"document '{document.id}'", field=field)
    return value


def as_vector(values: npt.ArrayLike, place: str) -> FloatArray:
    """fp32 (dimension,). Raises `InputError` that names the place, for what has another shape or no direction."""
    if isinstance(values, np.ndarray) and values.dtype == np.float32:
        vector: FloatArray = values
    else:
        try:
            numbers = np.asarray(values)
            if numbers.dtype.kind not in "fiubO":  # numpy would take texts and complex numbers, too
                raise TypeError(f"it holds {numbers.dtype}")
            with np.errstate(over="ignore"):  # to infinity, which is refused below
                vector = numbers.astype(np.float32)
        except (ValueError, TypeError, OverflowError, RuntimeError) as error:
            # Rows of several lengths, texts, integers without end, a tensor that requires a gradient.
            raise InputError(f"the vector is not one of numbers: {error}", source=place) from error
    if vector.ndim != 1 or not vector.size:
        raise InputError(f"the vector has shape {vector.shape}, not (dimension,)", source=place)
    with np.errstate(over="ignore", invalid="ignore"):
        length = float(vector @ vector)
    if 0.0 < length < np.inf:  # the usual case, in one pass
        return vector
    if not np.isfinite(vector).all():
        raise InputError("the vector holds NaN or infinity", source=place)
    if not vector.any():
        raise InputError("the vector is zero: it has no direction to compare", source=place)
    return vector
