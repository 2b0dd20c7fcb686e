"""Words, IOB2 labels and spans: pure functions on arrays and offsets. No torch.

Label ids: 0 is O; for entity type t (counting from 0), 1 + 2t is B-t and 2 + 2t is I-t.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from math import inf

import numpy as np
import numpy.typing as npt

Offsets = Sequence[tuple[int, int]]
"""Start and end of words or tokens, code points, end exclusive. Of a sentence, arrays would take longer than lists."""

IGNORED = -100
"""Label of a word that carries none: padding, and a word without a token."""

# Soft hyphen, zero-width space and joiners: tokenizers drop them, so they stand inside words or in none.
_INVISIBLE = r"\u00ad\u200b-\u200d\u2060\ufeff"
SIGNS = "@#"  # of handles and hashtags, which are names as a whole; but not the sign in an address
_UNICODE_WORDS = re.compile(
    rf"(?<![^\W_])(?<![^\W_]_)[{SIGNS}]\w+(?:[{_INVISIBLE}]+\w+)*"
    rf"|[^\W_]+(?:[{_INVISIBLE}]+[^\W_]+)*|[^\w\s{_INVISIBLE}]|_"
)


def split_words(text: str) -> Offsets:
    """Offsets of the words of a text: runs of letters and digits, handles (@name) and hashtags, and every other visible
    character by itself.

    Combining marks, such as accents in decomposed form or Indic vowel signs, belong to the word they stand in.

    >>> text = "it's 5% @ada_l"
    >>> [text[a:b] for a, b in split_words(text)]
    ['it', "'", 's', '5', '%', '@ada_l']
    """
    offsets = [match.span() for match in _UNICODE_WORDS.finditer(text)]
    if not text.isascii():
        offsets = _join_marks(text, offsets)
    return offsets


def _join_marks(text: str, offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join each combining mark to the word before it, and to what follows it where letters stand on both sides."""
    joined: list[tuple[int, int]] = []
    for start, end in offsets:
        if joined and joined[-1][1] == start:
            first, _ = joined[-1]
            mark = unicodedata.category(text[start]).startswith("M")
            named = text[first] in SIGNS and _in_handle(text[first + 1])
            continues = _in_handle(text[start]) if named else text[first].isalnum() and text[start].isalnum()
            if mark or continues:  # two runs of letters touch only where a mark parted them
                joined[-1] = (first, end)
                continue
        joined.append((start, end))
    return joined


def _in_handle(character: str) -> bool:
    return character.isalnum() or character == "_"


def tokens_of_words(words: Offsets, tokens: Offsets) -> list[list[int]]:
    """The tokens of each word.

    A token belongs to the word that its first character stands in; empty tokens (special ones) belong to none.
    `tokens` must not start with white space: see `trim_offsets`.
    """
    own: list[list[int]] = [[] for _ in words]
    starts = [start for start, _ in words]
    for token, (start, end) in enumerate(tokens):
        if end > start:
            word = bisect_right(starts, start) - 1
            if word >= 0 and start < words[word][1]:
                own[word].append(token)
    return own


def trim_offsets(text: str, tokens: Offsets) -> list[tuple[int, int]]:
    """Starts of tokens moved past leading white space, which some tokenizers count as part of a token."""
    trimmed = []
    for start, end in tokens:
        first = start
        while first < end and text[first].isspace():
            first += 1
        trimmed.append((first, end))
    return trimmed


def label_names(entity_types: Sequence[str]) -> list[str]:
    """The label of each id.

    >>> label_names(["PER", "LOC"])
    ['O', 'B-PER', 'I-PER', 'B-LOC', 'I-LOC']
    """
    return ["O", *(f"{prefix}-{name}" for name in entity_types for prefix in "BI")]


def labels_of_spans(spans: Sequence[tuple[int, int, int]], words: Offsets) -> npt.NDArray[np.int64]:
    """IOB2 label of each word for (type, start, end) spans that do not overlap. Shape (words,).

    A word belongs to a span if it overlaps it.
    """
    labels = np.zeros(len(words), dtype=np.int64)
    starts, ends = np.array(words, dtype=np.int64).reshape(-1, 2).T
    for entity_type, start, end in spans:
        inside = np.flatnonzero((starts < end) & (ends > start))
        labels[inside] = 2 + 2 * entity_type
        labels[inside[:1]] = 1 + 2 * entity_type
    return labels


def spans_of_labels(labels: Sequence[int]) -> list[tuple[int, int, int]]:
    """(type, first word, last word + 1) of a valid IOB2 sequence.

    >>> spans_of_labels([1, 2, 0, 3, 3])
    [(0, 0, 2), (1, 3, 4), (1, 4, 5)]
    """
    spans = []
    begin = inside = 0
    for at, label in enumerate((*labels, 0)):
        if inside and label != inside:
            spans.append(((inside - 2) // 2, begin, at))
            inside = 0
        if label % 2 == 1:
            begin, inside = at, label + 1
    return spans


def viterbi(log_probs: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The most probable valid IOB2 sequences, where I-t may only follow B-t or I-t of the same type.

    *Shapes:* `log_probs` (batch, words, labels), `lengths` (batch,) the number of words of each sequence; returns
    (batch, words), O beyond a sequence's length. Where the most probable label of each word by itself makes a valid
    sequence, that is it; the rest, a few, goes through Viterbi's algorithm.
    """
    best: npt.NDArray[np.int64] = log_probs.argmax(axis=2)
    best[np.arange(best.shape[1]) >= lengths[:, None]] = 0
    before = np.concatenate([np.zeros((len(best), 1), dtype=np.int64), best[:, :-1]], axis=1)[:, : best.shape[1]]
    invalid = (best > 0) & (best % 2 == 0) & (before != best) & (before != best - 1)
    rows = np.flatnonzero(invalid.any(axis=1))
    for row in rows.tolist():
        best[row, : lengths[row]] = _viterbi(log_probs[row, : lengths[row]].tolist())
    return best


def _viterbi(log_probs: Sequence[Sequence[float]]) -> list[int]:
    """As `viterbi`, for one sequence of at least one word: so few come here that arrays would cost more than lists.

    All transitions that are allowed cost nothing, so that for O and B-t the best predecessor is the best of all, and
    for I-t the better of B-t and I-t: O(words · labels).
    """
    begins = range(1, len(log_probs[0]), 2)
    score = [-inf if label and label % 2 == 0 else of for label, of in enumerate(log_probs[0])]
    came_from: list[list[int]] = []
    for own in log_probs[1:]:
        top = max(score)
        best = score.index(top)
        step, before = [top + own[0]], [best]
        for begin in begins:
            inside = begin if score[begin] >= score[begin + 1] else begin + 1
            step += (top + own[begin], score[inside] + own[begin + 1])
            before += (best, inside)
        score = step
        came_from.append(before)
    labels = [score.index(max(score))]
    for before in reversed(came_from):
        labels.append(before[labels[-1]])
    return labels[::-1]


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Log of the softmax over the last axis, in fp32."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
