"""Restoring a damaged index: what is sound, or can be made again and proven, goes into a new database and new segments.

| damage | how it is restored |
|---|---|
| codes, codes.space.npy | from the fp16 vectors; the centre of the code space is in every file of codes |
| ids of a segment | from passages and removals, proven by the file's SHA-256; else its rows by their own CRC-32 |
| fp16 vectors | the rows with the right CRC-32 are kept; the others from the texts, by the same model |
| pending, pooled vectors | the same |
| sectors of a segment's files that the disk cannot read | as if there were zeros |
| fields, paths, entity terms, SQLite's indexes, the log of changes | made again from the documents |
| labels, types of terms | each name is tried until a document's digest is right |
| passages, class, entities | from the text by the same model, proven by the document's digest |
| a bit of a text, of metadata, of an id | each bit is turned until the document's digest is right |
| a document's digest | the sum of all digests, less the others |
| the commit row, numbers, the manifest | from what they count and name |
| settings | from the given model, which must make the vectors that are there; of given vectors, by their checksums |
| the header, the schema, inner pages of meta.sqlite | not needed: rows are read page by page (pages.py) |
| a frame of the write-ahead log | those behind it are read all the same |
| a document that nothing proves | reported, and kept as it can be read, in the index or in `lost.jsonl` |
| a text beyond that; a given vector; what the log has lost | **lost**: reported, and kept in `damaged-<n>/` |

Once the proven documents are all that the last commit counts, by the sum of their digests, whatever else can be read is
what had been removed, and does not come back.

Nothing is changed until everything is written beside: then the damaged files are moved to `damaged-<n>/` inside the
index, and the new database takes its place by a rename. Killed before, the index is as it was; killed between the two
renames, the next run does the second one. Vectors that a run embedded are written down from time to time, so that the
next run finds them.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from indexer.durable import sync
from indexer.errors import StorageError, no_folder
from indexer.lock import WriterLock
from indexer.rebuild import KEPT, UNREPORTED, ModelLoader, Rebuild
from indexer.store import LOCK, META, REPAIRED
from indexer.verify import Fault, verify_index


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What `repair_index` found, what it could not restore, and the folder with the damaged files, if there are any."""

    found: tuple[Fault, ...]
    lost: tuple[Fault, ...]
    kept: str | None


def repair_index(path: str | Path, *, load: ModelLoader | None = None) -> RepairReport:
    """Restore what can be restored of a damaged index; see the table above. A sound index is left as it is.

    `load` is called only where texts must be embedded or tagged again. It may be killed at any moment, and be run
    again. Raises `LockedError`, `NotAnIndexError`, `ModelError` where a model is needed that is not there, and
    `CorruptIndexError` where there is nothing to restore, `StorageError`; the index is as it was then.
    """
    path = Path(path)
    if not path.is_dir():
        raise no_folder(path)
    lock = WriterLock(path / LOCK)
    try:
        _refuse_links(path)
        kept = _finish(path)
        lost = _unreported(path)
        found = verify_index(path).faults
        if found:
            lost += Rebuild(path, load).run()
            kept = _finish(path)
            lost = list(dict.fromkeys([*lost, *verify_index(path).faults]))
        (path / UNREPORTED).unlink(missing_ok=True)
    except (sqlite3.OperationalError, OSError) as error:
        raise StorageError(f"{path} cannot be repaired: {error}; run it again when that is mended") from error
    finally:
        lock.release()
    return RepairReport(found, tuple(lost), kept)


def _refuse_links(path: Path) -> None:
    """Raise where what a repair writes would go through a link: in a folder that somebody else has made, anywhere."""
    for name in (f"{KEPT}.tmp", UNREPORTED, REPAIRED):
        if (path / name).is_symlink():
            raise StorageError(f"{path / name} is a symbolic link, which is not written through: remove it")


def _finish(path: Path) -> str | None:
    """Put a repaired database in its place, if there is one; returns the folder to which the damaged one went."""
    kept = path / f"{KEPT}.tmp"
    if (path / REPAIRED).is_file():
        kept.mkdir(exist_ok=True)
        for name in (META, f"{META}-wal"):
            if (path / name).is_file():
                (path / name).rename(kept / name)
        (path / f"{META}-shm").unlink(missing_ok=True)
        sync(kept)
        sync(path)
        (path / REPAIRED).rename(path / META)
        sync(path)
    elif not any((kept / name).is_file() for name in (META, f"{META}-wal")):
        return None
    number = next(n for n in range(1, 10**6) if not (path / f"{KEPT}-{n}").exists())
    final = kept.rename(path / f"{KEPT}-{number}")
    sync(path)
    return str(final)


def _unreported(path: Path) -> list[Fault]:
    """What a repair that was killed lost, if it got as far as changing something."""
    try:
        lost = json.loads((path / UNREPORTED).read_text(encoding="utf-8"))
        return [Fault(**fault) for fault in lost]
    except (OSError, ValueError, TypeError):
        return []
