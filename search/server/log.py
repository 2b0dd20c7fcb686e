"""The log: one JSON object a line on standard error; without texts, ids and tokens unless that is asked for."""

from __future__ import annotations

import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

import orjson

ACCESS = logging.getLogger("tagdex.server.access")
ERRORS = logging.getLogger("tagdex.server.error")

_FRAMES = 12


class JsonLines(logging.Formatter):
    """A record as one line; what was given as `extra={"fields": …}` stands beside its message."""

    def __init__(self, *, texts: bool) -> None:
        super().__init__()
        self._texts = texts

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        fields: dict[str, Any] = getattr(record, "fields", {})
        message = record.getMessage()
        if record.name == "asyncio" and not self._texts:
            message = message.partition("\n")[0]  # below it are the objects concerned, and what they hold
        if message:
            line["message"] = message
        line |= fields
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = describe(record.exc_info[1], texts=self._texts)
        return orjson.dumps(line, default=repr).decode()


def describe(error: BaseException, *, texts: bool) -> dict[str, Any]:
    """An error's type and where it was raised; its message, which may quote a text, only with `texts`."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    return {
        "type": type(error).__name__,
        "at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
        **({"message": str(error)} if texts else {}),
    }


def set_up(*, texts: bool) -> None:
    """Send this process's log to standard error. For `search serve`; a program that embeds the app has its own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(texts=texts))
    for name in ("tagdex.server", "uvicorn", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(logging.INFO if name == "tagdex.server" else logging.WARNING)
