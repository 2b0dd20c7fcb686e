"""The filters of a request: counted before any is read, equal ones read once, and long ones off the event loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from indexer.errors import FilterError
from indexer.filters import Filter, from_json, parse
from search.server.problems import beyond
from search.server.settings import Limits
from search.server.threads import Threads

T = TypeVar("T")

QUICK = 1_000  # characters that take 4 ms to read at most

_DEEPEST_JSON = 3  # levels of JSON that one level of a filter takes at most, for a limit before it is read


class Filters:
    """Those of one request, as text or as JSON."""

    def __init__(self, limits: Limits, *given: str | dict[str, Any] | None) -> None:
        self._limits = limits
        self._size = 0
        self._read: dict[str, Filter | None] = {}
        for one in given:
            self.add(one)

    def add(self, given: str | dict[str, Any] | None) -> None:
        """Count one that will be read. Raises `Problem` beyond a limit."""
        if given is None:
            return
        limits = self._limits
        size = _size(given, limits)
        if _is_deeper(given, _DEEPEST_JSON * limits.filter_depth):
            raise beyond("filter_depth", limits.filter_depth, None, "the levels of a filter")
        key = json.dumps(given)
        if key not in self._read:
            self._read[key] = None
            self._size += size
        if self._size > limits.filters:
            raise beyond("filters", limits.filters, self._size, "the characters of the filters of one request")

    async def run(self, threads: Threads, call: Callable[[], T]) -> T:
        """The result of a call that reads them: in a thread where that takes long."""
        return call() if self._size <= QUICK else await threads.run(call)

    def read(self, given: str | dict[str, Any] | None) -> Filter | None:
        """One that was added. Raises `Problem` beyond a limit, `FilterError`."""
        if given is None:
            return None
        key = json.dumps(given)
        found = self._read.get(key)
        if found is None:
            found = self._read[key] = self._tree(given)
        return found

    def _tree(self, given: str | dict[str, Any]) -> Filter:
        if isinstance(given, str) and not given.strip():
            raise FilterError("the filter is empty: leave it out to search everything")
        tree = parse(given) if isinstance(given, str) else from_json(given)
        deepest = self._limits.filter_depth
        if tree.depth > deepest:
            raise beyond("filter_depth", deepest, tree.depth, "the levels of a filter")
        return tree


def _size(given: object, limits: Limits) -> int:
    """The characters of a filter; in JSON those of all its names and texts, and one for each member.

    Raises `Problem` beyond the limit, without having looked at much more than it.
    """
    size, left = 0, [given]
    while left:
        value = left.pop()
        if isinstance(value, str | list | dict):
            size += len(value)
        if size > limits.filter:
            got = size if value is given else None
            raise beyond("filter", limits.filter, got, "the characters and members of a filter")
        if isinstance(value, dict):
            left += value
            left += value.values()
        elif isinstance(value, list):
            left += value
    return size


def _is_deeper(value: object, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
