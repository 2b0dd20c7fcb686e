"""One writer an index: a lock that the operating system releases when the process dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from indexer.errors import LockedError, StorageError


class WriterLock:
    """Exclusive lock on a file, held until `release`. The file stays, and names its last holder's process."""

    def __init__(self, path: Path) -> None:
        """Take the lock at once or raise `LockedError`, naming the process that holds it, or `StorageError`."""
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        except BlockingIOError as error:
            holder = os.read(self._descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            self.release()
            raise LockedError(
                f"{path.parent} is being written to by process {holder}: wait until it is done, or stop it"
            ) from error
        except OSError as error:
            self.release()
            raise StorageError(f"{path.parent} cannot be written: {error.strerror}") from error

    def release(self) -> None:
        """Give the lock back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
