"""Copies of a whole index, made while its writer goes on: one commit of it, durable, there whole or not at all.

A copy is an index folder like any other: it can be searched, verified, and written to.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from indexer.changes import CommitState, read_commit
from indexer.durable import sync
from indexer.errors import CorruptIndexError, DestinationError, LockedError, NotAnIndexError, StorageError, no_folder
from indexer.manifest import read_segments
from indexer.merging import CODE_SPACE, CODE_SPACE_SHA256
from indexer.metadata import connect_reader
from indexer.settings import read_setting, read_settings
from indexer.store import LOCK, META, SEGMENTS
from indexer.verify import verify_index

T = TypeVar("T")

_TRIES = 20  # for a commit whose files are all there; compaction must come in between each time for one to fail
_PAGES = 4_096  # of 16 KB, copied before a signal such as Ctrl-C is looked at
_CHUNK = 1 << 30
_SIDE_FILES = tuple(META + suffix for suffix in ("-wal", "-shm", "-journal"))
_NO_RANGE_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.ETXTBSY}


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy holds: the number of the commit, its documents, the bytes of all its files."""

    commit: int
    documents: int
    bytes: int


def copy_index(source: Path, dest: Path, *, link: bool, verify: bool) -> Copied:
    """Copy the newest commit of an index to a new folder; with `verify`, only if `indexer verify` has nothing to say.

    The writer's lock is not needed. A read transaction, during which the writer's log cannot be emptied, lasts as
    long as the copy of meta.sqlite; the segments, most of the bytes, are held open and copied after it. With `link`
    their files are hard links where the file system can: nothing is copied, and what damages one damages both.

    Raises `DestinationError`, `NotAnIndexError`, `FormatError`, `CorruptIndexError`, `StorageError`, `LockedError`
    where `dest` is being made by another process.
    """
    if not source.is_dir():
        raise no_folder(source)
    if dest.resolve().is_relative_to(source.resolve()) or source.resolve().is_relative_to(dest.resolve()):
        raise DestinationError(f"{dest} and {source} lie within each other: choose another place")
    with storage_errors(dest), _made_beside(dest) as folder:
        (folder / SEGMENTS).mkdir()
        state = _copy_into(source, folder, link=link)
        if verify:
            _verify(source, folder)
        for name in _SIDE_FILES:
            (folder / name).unlink(missing_ok=True)  # left by our own reading of the copy, and empty
        for path in (folder / META, folder / SEGMENTS):
            sync(path)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Copied(state.number, state.documents, size)


def copy_commit(path: Path, target: sqlite3.Connection, hold: Callable[[sqlite3.Connection], T]) -> T:
    """Copy the newest commit of meta.sqlite into an empty database; returns what `hold` took of that commit.

    `hold` is called in the same read transaction, and opens or links segment files. Where one has vanished, compaction
    has replaced it: it raises `FileNotFoundError`, and a newer commit is taken. Raises as `IndexReader` does.
    """
    connection = connect_reader(path / META)
    try:
        for _ in range(_TRIES):
            connection.execute("BEGIN")
            if read_settings(connection) is None:
                raise NotAnIndexError(f"{path} is not an index yet: it has no settings")
            try:
                held = hold(connection)
            except FileNotFoundError as error:
                vanished = error
                connection.execute("ROLLBACK")
                continue
            connection.backup(target, pages=_PAGES)
            return held
        raise CorruptIndexError(
            f"{vanished.filename or vanished} is named by the index but is not there; run 'indexer verify {path}'"
        ) from vanished
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise StorageError(f"{path / META} cannot be copied: {error}") from error
        raise CorruptIndexError(f"{path / META}: {error}; run 'indexer verify {path}'") from error
    finally:
        connection.close()


def segment_files(connection: sqlite3.Connection) -> list[str]:
    """The names of all files under segments/ that the commit needs."""
    names = [file.name for record in read_segments(connection) for file in record.files]
    return [*names, *([CODE_SPACE] if read_setting(connection, CODE_SPACE_SHA256) is not None else [])]


@contextmanager
def storage_errors(dest: Path) -> Iterator[None]:
    """What the system and SQLite say of a place to write to → `StorageError`."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise StorageError(f"{dest} cannot be written: {error}") from error
    except OSError as error:
        place = error.filename or dest
        raise StorageError(f"{place}: {error.strerror or error}; nothing was written to {dest}") from error


def sync_name(dest: Path) -> None:
    """Make the name of what was written durable."""
    try:
        sync(dest.absolute().parent)
    except OSError as error:
        raise StorageError(
            f"{dest} is there and whole, but its name may not survive a power cut: {error.strerror or error}"
        ) from error


def refuse_existing(dest: Path) -> None:
    """Raise `DestinationError` where there is something already, or no folder to put it in."""
    if os.path.lexists(dest):
        raise DestinationError(f"{dest} exists already: choose another name, or move it away first")
    if not dest.parent.is_dir():
        raise DestinationError(f"{dest.parent} is not a folder: make it first")


def _copy_into(source: Path, folder: Path, *, link: bool) -> CommitState:
    files: dict[str, BinaryIO] = {}
    with ExitStack() as opened:

        def hold(connection: sqlite3.Connection) -> CommitState:
            # What there is already is of an older commit, whose other files have vanished.
            opened.close()
            files.clear()
            for linked in (folder / SEGMENTS).iterdir():
                linked.unlink()
            for name in segment_files(connection):
                if not (link and _linked(source / SEGMENTS / name, folder / SEGMENTS / name)):
                    files[name] = opened.enter_context((source / SEGMENTS / name).open("rb"))
            return read_commit(connection)

        with closing(sqlite3.connect(folder / META, isolation_level=None)) as target:
            # Nobody else sees the file, and it is synced as a whole: it needs no journal.
            target.execute("PRAGMA journal_mode = OFF")
            target.execute("PRAGMA synchronous = OFF")
            state = copy_commit(source, target, hold)
        for name, file in files.items():
            _copy_file(file, folder / SEGMENTS / name)
    return state


def _linked(file: Path, name: Path) -> bool:
    """True where the file has another name now; false where the file system cannot do that."""
    try:
        name.hardlink_to(file)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True


def _copy_file(file: BinaryIO, path: Path) -> None:
    """A durable copy. Where the file system can share blocks until one of the files changes, it does."""
    with path.open("xb") as copy:
        try:
            while os.copy_file_range(file.fileno(), copy.fileno(), _CHUNK):
                pass
        except OSError as error:
            if error.errno not in _NO_RANGE_COPY:
                raise
        shutil.copyfileobj(file, copy, 1 << 20)  # what is left: nothing, or all
        copy.flush()
        os.fsync(copy.fileno())


def _verify(source: Path, folder: Path) -> None:
    faults = verify_index(folder).faults
    if faults:
        raise CorruptIndexError(
            f"{source} is damaged: {faults[0].place}: {faults[0].problem}"
            f"{f', and {len(faults) - 1} more' if len(faults) > 1 else ''}; nothing was written: run "
            f"'indexer verify {source}'"
        )


@contextmanager
def _made_beside(dest: Path) -> Iterator[Path]:
    """An empty folder beside `dest`, which gets that name, durably, when the block is left without an error.

    What a kill leaves has a name of its own, and goes when the same `dest` is made the next time.
    """
    refuse_existing(dest)
    folder = dest.with_name(f".{dest.name}.unfinished")
    with ExitStack() as stack:
        _own(folder, dest, stack)
        _make_empty(folder)
        try:
            yield folder
            sync(folder)
            refuse_existing(dest)
            folder.rename(dest)
            sync_name(dest)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _own(folder: Path, dest: Path, stack: ExitStack) -> None:
    """Make a folder, or take over what a killed process left; until the stack is closed, nobody else can."""
    while True:
        folder.mkdir(exist_ok=True)
        with ExitStack() as own:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            own.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LockedError(f"{dest} is being made by another process: wait until it is done") from error
            with suppress(FileNotFoundError):  # else its owner has finished between our two steps
                if os.path.samestat(os.fstat(descriptor), folder.stat()):
                    stack.push(own.pop_all())
                    return


def _make_empty(folder: Path) -> None:
    known = {META, *_SIDE_FILES, SEGMENTS, LOCK}
    if others := {file.name for file in folder.iterdir()} - known:
        raise DestinationError(f"{folder} holds other files such as {min(others)}: move it away first")
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
