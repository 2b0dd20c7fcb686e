"""One writer an index: a lock that the operating system releases when the process dies.

The file has two lines of fixed length: the process that holds it, or held it last; and the last commit that was
acknowledged, with its CRC-32. That number is written after the commit is durable. So a database that is behind it has
lost something, which SQLite cannot know: a write-ahead log that is gone, or cut off, is to it one that was never there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import zlib
from contextlib import suppress
from pathlib import Path

from indexer.errors import LockedError, StorageError

_HOLDER_BYTES, _COMMIT_BYTES = 16, 30  # of the two lines


class WriterLock:
    """Exclusive lock on a file, held until `release`. The file stays, and names its last holder's process."""

    def __init__(self, path: Path) -> None:
        """Take the lock at once or raise `LockedError`, naming the process that holds it, or `StorageError`."""
        self._descriptor = -1
        try:
            # Not through a link: in a folder that somebody else has made it may lead to any file of the user's.
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.pwrite(self._descriptor, f"{os.getpid():<{_HOLDER_BYTES - 1}}\n".encode("ascii"), 0)
        except BlockingIOError as error:
            holder = os.read(self._descriptor, _HOLDER_BYTES).decode("ascii", "replace").strip() or "unknown"
            self.release()
            raise LockedError(
                f"{path.parent} is being written to by process {holder}: wait until it is done, or stop it"
            ) from error
        except OSError as error:
            self.release()
            if error.errno == errno.ELOOP:
                raise StorageError(f"{path} is a symbolic link, which is not written through: remove it") from error
            raise StorageError(f"{path.parent} cannot be written: {error.strerror}") from error
        except BaseException:
            self.release()
            raise

    def acknowledge(self, commit: int) -> None:
        """Note the number of a commit that is durable."""
        number = f"{commit:<20}"
        line = f"{number} {zlib.crc32(number.encode('ascii')):08x}\n".encode("ascii")
        with suppress(OSError):  # the commit is what counts; this only guards it
            os.pwrite(self._descriptor, line, _HOLDER_BYTES)

    def release(self) -> None:
        """Give the lock back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def acknowledged_commit(path: Path) -> int:
    """The last commit that was acknowledged, by the lock file; 0 where that is not known."""
    try:
        if not path.is_file():
            return 0
        with path.open("rb") as file:
            file.seek(_HOLDER_BYTES)
            number, _, crc = file.read(_COMMIT_BYTES).decode("ascii").rstrip("\n").rpartition(" ")
        return int(number) if int(crc, 16) == zlib.crc32(number.encode("ascii")) else 0
    except (OSError, ValueError):
        return 0
