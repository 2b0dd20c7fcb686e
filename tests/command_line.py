"""Running the command lines inside the tests' process, and what their output must look like."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """Exit code, standard output and standard error of a command."""

    code: int
    out: str
    err: str

    @property
    def jsons(self) -> list[Any]:
        """The objects of JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Result]


def write_jsonl(path: str, records: list[dict[str, Any]]) -> str:
    Path(path).write_text("".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records))
    return path


def assert_fails(result: Result, message: str, *, code: int = 1, out: str = "") -> None:
    """One line on stderr and nothing else."""
    assert (result.code, result.err, result.out) == (code, f"Error: {message}\n", out)


def assert_usage(result: Result, message: str) -> None:
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"Error: {message} (see '")
    assert result.err.count("\n") == 1
