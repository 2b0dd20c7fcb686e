"""The index from Python, in one call each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from indexer import pipeline
from indexer.backup import Copied, copy_index
from indexer.errors import FilterError, InputError, ModelError, TagdexError, UnfinishedIndexError
from indexer.export import export_documents, write_records
from indexer.fields import has_lone_surrogate, id_problem, metadata_problems, named
from indexer.filters import AnyFilter, as_filter, check_names
from indexer.given import as_vector
from indexer.pipeline import Report
from indexer.records import Document
from indexer.settings import settings_of, settings_of_vectors
from indexer.store import META, REPAIRED, IndexWriter

if TYPE_CHECKING:
    from indexer.model import TextModel
    from indexer.repair import RepairReport


def add_documents(
    path: str | Path,
    documents: Iterable[Document],
    *,
    model: TextModel | str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    batch_tokens: int | None = None,
    tags: bool | None = None,
    on_commit: Callable[[Report], None] | None = None,
    on_error: Callable[[InputError], None] | None = None,
) -> Report:
    """Add documents to an index, which is made where there is none; a known id is replaced, the same text skipped.

    `model`: a loaded one, a folder or a name; by default the index's own, for a new index the default model. Where
    documents bring their vectors, it says by which model those were made, and `None` that this is not known.
    A vector may be overwritten once the next document is asked for; metadata have to stay as they are until stored.
    `precision`: what a model that is loaded here computes in; "auto" is bf16 where the device is faster with it.
    `tags`: whether a new index has class and entities; by default it has, unless documents bring their vectors.
    What `on_commit` was told of is durable; each report is one of its own. `on_error` is called for each document that
    cannot be kept, which is then passed over; without it the first one ends the call, with what came before it kept.
    Raises `InputError`, also where there is no document for a new index, `ModelError`, `IndexFolderError` and what
    `documents` raises.
    """
    path = Path(path)
    iterator = checked(documents, on_error=on_error)
    if (writer := _open_existing(path)) is not None:
        with writer:
            settings = writer.settings
            if settings.tagged and tags is False:
                raise TagdexError(
                    f"{path} was built with tags, so tags=False (--no-tags) cannot be had: leave it out, or build a "
                    "new index"
                )
            if tags and not settings.tagged:
                raise TagdexError(
                    f"{path} was built without tags, so tags=True (--tags) cannot be had: leave it out, or build a new "
                    "index; where a model embedded the texts, 'indexer retag' adds tags"
                )
            if settings.fingerprint is None:
                return pipeline.index(iterator, None, writer, on_commit=on_commit, on_error=on_error)
            if model is None:
                iterator = _without_vectors(iterator, path, settings.model)
                _, iterator = _peek(iterator)  # refused before the model is loaded
            loaded = _load(model if model is not None else settings.model, device, precision, batch_tokens)
            return pipeline.index(iterator, loaded, writer, on_commit=on_commit, on_error=on_error)
    # Neither a bad first record nor a bad model leaves an empty index behind.
    first, iterator = _peek(iterator)
    if first is None:
        raise InputError("there is nothing to add: no document was given")
    dimension = None if first.vector is None else len(np.asarray(first.vector))
    wanted, tags = bool(tags), dimension is None if tags is None else tags
    if dimension is not None and model is None and not tags:
        settings = settings_of_vectors(dimension)
        with IndexWriter(path, create=settings, empty=False) as writer:
            return pipeline.index(iterator, None, writer, on_commit=on_commit, on_error=on_error)
    if dimension is not None and model is None:
        raise InputError("tags for vectors that are given need --model, which says by which model these were made")
    loaded = _load(model, device, precision, batch_tokens)
    if wanted and not settings_of(loaded).tagged:
        raise ModelError(
            f"model {loaded.name} has no heads, so tags=True (--tags) cannot be had: leave it out, or take another"
        )
    if dimension not in (None, loaded.dimension):
        raise InputError(
            f"its vector has {dimension} dimensions, those of model {loaded.name} have {loaded.dimension}",
            source=f"document '{first.id}'",
        )
    if model is None:
        iterator = _without_vectors(iterator, path, loaded.name)
    with IndexWriter(path, create=settings_of(loaded, tags=tags), empty=False) as writer:
        return pipeline.index(iterator, loaded, writer, on_commit=on_commit, on_error=on_error)


def compact_index(path: str | Path, *, codes: str | None = None) -> int:
    """Give back the space of what was removed, and put segments together; returns how many were written.

    `codes`: which segments have compressed codes, from now on: "auto", the large ones; "always"; "never". Raises
    `IndexFolderError`, and `TagdexError` for another one.
    """
    with IndexWriter(path) as writer:
        return writer.compact(full=True, codes=codes)


def remove_documents(path: str | Path, ids: Iterable[str]) -> list[str]:
    """Remove documents in one transaction; returns the ids that were not there.

    Raises `InputError` for one id in place of several, `IndexFolderError`.
    """
    with IndexWriter(path) as writer:
        return writer.remove(ids)


def remove_matching(path: str | Path, where: AnyFilter) -> int:
    """Remove the documents for which a filter is true, in one transaction; returns how many.

    `where`: as `filter` in `Searcher.search`. Raises `FilterError`, `IndexFolderError`.
    """
    tree = as_filter(where)
    if tree is None:
        raise FilterError("a filter must say which documents to remove, got None")
    with IndexWriter(path) as writer:
        check_names(tree, labels=writer.settings.class_labels, entity_types=writer.settings.entity_types)
        return writer.remove_matching(tree)


def retag_documents(
    path: str | Path,
    *,
    model: TextModel | str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    batch_tokens: int | None = None,
    on_commit: Callable[[int], None] | None = None,
) -> int:
    """Give every document of an index new classes and entities without embedding it again; returns how many.

    `model` must embed as the index's own does; by default it is that one. Raises `FingerprintError`.
    """
    with IndexWriter(path) as writer:
        loaded = _load(model if model is not None else writer.settings.model, device, precision, batch_tokens)
        return pipeline.retag(loaded, writer, on_commit=on_commit)


def snapshot_index(path: str | Path, dest: str | Path, *, link: bool = False, verify: bool = True) -> Copied:
    """Copy an index as of its newest commit to a new folder, while its writer and its readers go on.

    The copy is an index itself, durable when this returns; `dest` is there whole or not at all. With `verify` it is
    checked as `verify_index` does before it gets its name. `link`: hard links in place of copies of the segments,
    where the file system can: quick and small, but no protection from damage to the files, which both then share.
    Raises `DestinationError` where there is a `dest` already, `IndexFolderError`.
    """
    return copy_index(Path(path), Path(dest), link=link, verify=verify)


def restore_index(source: str | Path, path: str | Path) -> Copied:
    """Make an index of a snapshot, which stays as it is, if everything in it is right.

    Raises `CorruptIndexError` for a damaged one, `DestinationError` where there is a `path` already.
    """
    return copy_index(Path(source), Path(path), link=False, verify=True)


def export_index(path: str | Path, output: str | Path, *, vectors: bool = False, passage_vectors: bool = False) -> int:
    """Write all that an index says about its documents to a new .jsonl or .parquet file; returns how many there are.

    `export.export_documents` gives the same as objects. Raises `DestinationError`, `IndexFolderError`.
    """
    return write_records(export_documents(path, vectors=vectors, passage_vectors=passage_vectors), Path(output))


def repair_index(
    path: str | Path, *, model: TextModel | str | Path | None = None, device: str = "auto"
) -> RepairReport:
    """Restore what can be restored of a damaged index; returns what was found, and what stays lost.

    `model`: by default the index's own; it is loaded only where texts must be embedded or tagged again. Damaged files
    are kept in a folder `damaged-<n>` inside the index. Raises `ModelError`, `CorruptIndexError`, `LockedError`.
    """
    from indexer import repair

    def load(name: str | None) -> TextModel:
        return _load(model if model is not None else name, device, "fp32", None)

    return repair.repair_index(path, load=load)


def checked(
    documents: Iterable[Document], *, on_error: Callable[[InputError], None] | None = None
) -> Iterator[Document]:
    """The documents that an index can keep; for others `on_error` is called, or their `InputError` raised."""
    if isinstance(documents, Document | str | bytes) or not isinstance(documents, Iterable):
        raise InputError(f"documents must be several, in a list or any other iterable, got {named(documents)}")
    for number, document in enumerate(documents, start=1):
        try:
            kept = _checked(document, f"document {number}")
        except InputError as error:
            if on_error is None:
                raise
            on_error(error)
        else:
            yield kept


def _checked(document: Document, place: str) -> Document:
    """The document, with a vector in fp32 that stays as it is, whatever the caller does with the array it came in."""
    if not isinstance(document, Document):
        raise InputError(f"expected Document(id, text, metadata), got {named(document)}", source=place)
    if not isinstance(document.id, str) or not document.id:
        raise InputError(f"the id must be a string that is not empty, got {document.id!r}", source=place)
    if (problem := id_problem(document.id)) is not None:
        raise InputError(problem, source=place, field="id")
    place = f"{place} ('{document.id}')"
    if document.text is not None and not isinstance(document.text, str):
        raise InputError(f"the text must be a string, got {named(document.text)}", source=place)
    if document.text is None or (not document.text.strip() and document.vector is None):
        raise InputError("the text is empty", source=place)
    if has_lone_surrogate(document.text):
        raise InputError("the text has a lone surrogate, which is not valid Unicode", source=place)
    if not isinstance(document.metadata, Mapping):
        raise InputError(f"the metadata must be a dict, got {named(document.metadata)}", source=place)
    if not isinstance(document.metadata, dict):
        document = replace(document, metadata=dict(document.metadata))
    for field, problem in metadata_problems(document.metadata):
        raise InputError(problem, source=place, field=field or None)
    if document.vector is None:
        return document
    vector = as_vector(document.vector, place)
    if vector is not document.vector:
        return replace(document, vector=vector)
    return replace(document, vector=vector.copy()) if vector.flags.writeable else document


def _open_existing(path: Path) -> IndexWriter | None:
    """The writer of an index, `None` where there is none yet, or only what was left when its making was cut short."""
    if not (path / META).is_file() and not (path / REPAIRED).is_file():
        return None
    try:
        return IndexWriter(path)
    except UnfinishedIndexError:
        return None


def _without_vectors(documents: Iterator[Document], path: Path, model: str | None) -> Iterator[Document]:
    """The documents, none of which may bring a vector, because nobody has said which model made it."""
    for document in documents:
        if document.vector is not None:
            raise InputError(f"{path} was built with model {model}: pass --model to say that these vectors are its own")
        yield document


def _peek(documents: Iterator[Document]) -> tuple[Document | None, Iterator[Document]]:
    """The first document, `None` where there is none, and all documents."""
    first = next(documents, None)
    return first, documents if first is None else chain([first], documents)


def _load(model: TextModel | str | Path | None, device: str, precision: str, batch_tokens: int | None) -> TextModel:
    from indexer.model import TextModel

    if isinstance(model, TextModel):
        return model
    return TextModel.load(model, device=device, precision=precision, batch_tokens=batch_tokens)
