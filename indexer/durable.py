"""Files that are there whole or not at all, also after a power cut, and which file a name stands for."""

from __future__ import annotations

import errno
import os
import secrets
import sqlite3
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from indexer.errors import StorageError


def write_npy(file: BinaryIO, array: npt.NDArray[Any]) -> None:
    """Write an array in numpy's format; unlike `numpy.save`, raises where the disk is full."""
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    file.write(np.ascontiguousarray(array).tobytes())


def temporary_beside(path: Path) -> Path:
    """A name for what will be `path`, in a folder that is the user's: nothing of this name is there already."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")


def write_file(path: Path, write: Callable[[BinaryIO], None], *, temporary: Path | None = None) -> None:
    """Write a file under a temporary name, fsync it, rename it; nothing stays where that fails.

    `temporary`: by default the path with ".tmp" behind it, where in a folder of ours it replaces what a run that was
    killed has left.
    """
    temporary = path.with_name(path.name + ".tmp") if temporary is None else temporary
    try:
        with open(temporary, "wb", opener=_not_through_a_link) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _not_through_a_link(path: str, flags: int) -> int:
    """In a folder that somebody else has made, a link under a name that we use may lead to any file of the user's."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def vector_crc(vid: int, doc: int, vector: bytes) -> int:
    """CRC-32 of a stored vector together with its numbers; it goes with the vector wherever that is copied to."""
    return zlib.crc32(vector, zlib.crc32(struct.pack("<qq", vid, doc)))


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_with_parents(folder: Path) -> None:
    """fsync a folder and those above it, so that its name is durable however many of them are new.

    Up to the root of its file system. A folder that cannot be written to has got no new name from us, and one that
    cannot be read cannot be synced.
    """
    sync(folder)
    device = folder.stat().st_dev
    for parent in folder.resolve().parents:
        if parent.stat().st_dev != device:
            return
        if os.access(parent, os.R_OK | os.W_OK):
            sync(parent)


FileNumber = tuple[int, int]
"""Device and inode: what tells a file from every other that exists at the same time, whatever their names are."""


def file_number(path: Path) -> FileNumber | None:
    """The file that a path names now, `None` where there is none. Raises `StorageError`."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error
    return found.st_dev, found.st_ino


_SCARCE = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_SCARCE_IN_SQLITE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM)


def is_scarcity(error: BaseException) -> bool:
    """Whether an error says nothing about what was read, only that memory, room on a disk or open files have run out.

    FAISS has only a text for it.
    """
    if isinstance(error, OSError):
        return error.errno in _SCARCE
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _SCARCE_IN_SQLITE
    if isinstance(error, RuntimeError):
        return any(os.strerror(number) in str(error) for number in _SCARCE)
    return isinstance(error, MemoryError)
