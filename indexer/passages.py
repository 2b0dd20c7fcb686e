"""Documents longer than the model's window become passages; nothing is cut off."""

from __future__ import annotations

from collections.abc import Callable

import semchunk


def split_passages(text: str, *, tokens: int, max_tokens: int, count: Callable[[str], int]) -> list[tuple[int, int]]:
    """Offsets of the passages of a text, in order; together they hold every visible character of it.

    `tokens` is the text's own number of tokens, `max_tokens` what fits into one window, both without special
    tokens; `count` counts the tokens of a piece. A text that fits is one passage, the whole text. Longer ones
    are cut at the ends of paragraphs, then sentences, then words. White space alone is one empty passage.
    """
    if tokens <= max_tokens:
        return [(0, len(text))]
    _, offsets = semchunk.chunk(text, max_tokens, count, memoize=False, offsets=True)
    return [(start, end) for start, end in offsets] or [(0, 0)]
