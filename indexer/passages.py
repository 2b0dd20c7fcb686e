"""Documents longer than the model's window become passages; nothing is cut off."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate

import semchunk

# semchunk splits at one kind of separator a level of its recursion, a distinct run of white space or a space behind a
# distinct sign, and counts what is too long again at every level. Prose has some dozens of kinds, and is counted a few
# times over. Where a text is made so that thousands of levels would be needed, its words are packed instead.
MAX_SEPARATORS = 128
MAX_COUNTED = 32  # characters, for each one of the text

_SEPARATOR = re.compile(r"""[\r\n]+|\t+|[^\S\r\n\t]{2,}|[.?!;,()\[\]“”‘’'"`*:—…/\\–&-][^\S\r\n\t]""")
_WORD = re.compile(r"\S+")
_SENTENCE_ENDS = (".", "?", "!", "…", "。", "？", "！")


class _TooCostlyError(Exception):
    """semchunk has counted more characters than a text of this length may cost."""


def split_passages(text: str, *, tokens: int, max_tokens: int, count: Callable[[str], int]) -> list[tuple[int, int]]:
    """Offsets of the passages of a text, in order; together they hold every visible character of it.

    `tokens` is the text's own number of tokens, `max_tokens` what fits into one window, both without special
    tokens; `count` counts the tokens of a piece. A text that fits is one passage, the whole text. Longer ones
    are cut at the ends of paragraphs, then sentences, then words. White space alone is one empty passage.
    """
    if tokens <= max_tokens:
        return [(0, len(text))]
    offsets: list[tuple[int, int]] | None = None
    if len(set(_SEPARATOR.findall(text))) <= MAX_SEPARATORS:
        offsets = _chunked(text, max_tokens, count)
    if offsets is None:
        offsets = _packed(text, max_tokens, count)
    return offsets or [(0, 0)]


def _chunked(text: str, max_tokens: int, count: Callable[[str], int]) -> list[tuple[int, int]] | None:
    """Passages by structure, as semchunk finds it; `None` where that costs too much."""
    left = MAX_COUNTED * len(text)

    def count_within_budget(piece: str) -> int:
        nonlocal left
        left -= len(piece)
        if left < 0:
            raise _TooCostlyError
        return count(piece)

    try:
        _, offsets = semchunk.chunk(text, max_tokens, count_within_budget, memoize=False, offsets=True)
    except _TooCostlyError:
        return None
    return [(start, end) for start, end in offsets]


def _packed(text: str, max_tokens: int, count: Callable[[str], int]) -> list[tuple[int, int]]:
    """As many words a passage as fit, up to the last end of a line or a sentence in its second half, if there is one.

    Each word is counted once, with the white space before it.
    """
    words = [match.span() for match in _WORD.finditer(text)]
    before = [0, *(end for _, end in words)][: len(words)]
    costs = list(accumulate((count(text[a:end]) for a, (_, end) in zip(before, words, strict=True)), initial=0))
    passages: list[tuple[int, int]] = []
    first = 0
    while first < len(words):
        end = max(first + 1, bisect_right(costs, costs[first] + max_tokens) - 1)
        if end < len(words):
            half = first + (end - first) // 2
            end = next((at for at in range(end, half, -1) if _ends_sentence(text, words, at - 1)), end)
        start, stop = words[first][0], words[end - 1][1]
        piece = text[start:stop]
        if count(piece) <= max_tokens:
            passages.append((start, stop))
        else:  # a word that is longer than a window, or one that takes more tokens beside its neighbours than alone
            _, offsets = semchunk.chunk(piece, max_tokens, count, memoize=False, offsets=True)
            passages += [(start + a, start + b) for a, b in offsets]
        first = end
    return passages


def _ends_sentence(text: str, words: list[tuple[int, int]], at: int) -> bool:
    stop, following = words[at][1], words[at + 1][0]
    return text.endswith(_SENTENCE_ENDS, words[at][0], stop) or "\n" in text[stop:following]
