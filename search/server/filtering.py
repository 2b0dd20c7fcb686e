"""The filters of a request: within its limits, equal ones read once, and long ones off the event loop."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from indexer.errors import FilterError
from indexer.fields import is_deeper
from indexer.filters import Filter, from_json, parse
from search.server.problems import beyond
from search.server.settings import Limits
from search.server.threads import Threads

T = TypeVar("T")
Given = str | dict[str, Any] | None

QUICK = 1_000  # characters that take 4 ms to read at most

_DEEPEST_JSON = 3  # levels of JSON that one level of a filter takes at most, for a limit before it is read


class Filters:
    """Reads those of one request, as text or as JSON."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._size = 0
        self._read: dict[str, Filter] = {}

    def read(self, given: Given) -> Filter | None:
        """A filter of the request. Raises `Problem` beyond a limit, `FilterError`."""
        if given is None:
            return None
        limits = self._limits
        try:
            key = json.dumps(given)
        except RecursionError:
            raise beyond("filter_depth", limits.filter_depth, None, "the levels of a filter") from None
        found = self._read.get(key)
        if found is None:
            self._check(given)
            found = self._read[key] = _tree(given)
            if found.depth > limits.filter_depth:
                raise beyond("filter_depth", limits.filter_depth, found.depth, "the levels of a filter")
        return found

    def _check(self, given: str | dict[str, Any]) -> None:
        limits = self._limits
        size = _size(given, limits.filter)
        if size > limits.filter:
            got = size if isinstance(given, str) else None
            raise beyond("filter", limits.filter, got, "the characters and members of a filter")
        if is_deeper(given, _DEEPEST_JSON * limits.filter_depth):
            raise beyond("filter_depth", limits.filter_depth, None, "the levels of a filter")
        self._size += size
        if self._size > limits.filters:
            raise beyond("filters", limits.filters, self._size, "the characters of the filters of one request")


async def reading(threads: Threads, given: Iterable[Given], call: Callable[[], T]) -> T:
    """The result of a call that reads filters: in a thread where that takes long, and others would wait for it."""
    size = 0
    for one in given:
        size += _size(one, QUICK)
        if size > QUICK:
            return await threads.run(call)
    return call()


def _tree(given: str | dict[str, Any]) -> Filter:
    if isinstance(given, str) and not given.strip():
        raise FilterError("the filter is empty: leave it out to search everything")
    return parse(given) if isinstance(given, str) else from_json(given)


def _size(given: Given, most: int) -> int:
    """The characters of a filter; in JSON those of all its names and texts, and one for each member.

    Where they are more than `most`, a number above it, without having looked at all of them.
    """
    size, left = 0, [given]
    while left and size <= most:
        value: object = left.pop()
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, list | dict):
            size += len(value)
            if size <= most:
                left += value
                left += value.values() if isinstance(value, dict) else ()
    return size
