"""A .npy file that grows row by row and is there, whole, only at the end."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np

from indexer.durable import temporary_beside
from indexer.errors import StorageError
from indexer.records import FloatArray


class NpyWriter:
    """Append fp32 rows to a .npy file in constant memory.

    Rows go to a temporary file beside the output, which replaces it when the block is left without an error. Another
    .npy file is replaced; a file of another kind, which may be the very one that is read, is refused.
    """

    def __init__(self, path: Path, *, dimension: int) -> None:
        self.path = path
        self.dimension = dimension
        self.rows = 0
        self._temporary = temporary_beside(path)
        try:
            if _is_of_another_kind(path):
                raise StorageError(f"{path} exists already and is not a .npy file: choose another name")
            self._file = self._temporary.open("wb")
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}") from error
        self._write_header()

    def append(self, rows: FloatArray) -> None:
        """Add rows, fp32 (n, dimension)."""
        try:
            self._file.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
        except OSError as error:
            raise StorageError(f"{self.path} cannot be written: {error.strerror}") from error
        self.rows += len(rows)

    def __enter__(self) -> NpyWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._file.seek(0)
                self._write_header()
        finally:
            self._file.close()
        if kind is None:
            self._temporary.replace(self.path)
        else:
            self._temporary.unlink(missing_ok=True)

    def _write_header(self) -> None:
        # numpy pads the header so that the first axis may grow in place.
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, self.dimension)}
        np.lib.format.write_array_header_1_0(self._file, header)


def _is_of_another_kind(path: Path) -> bool:
    """True for a file with content that does not begin as a .npy file does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(len(np.lib.format.MAGIC_PREFIX))
    return start not in (b"", np.lib.format.MAGIC_PREFIX)
