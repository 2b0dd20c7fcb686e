"""The case and form of each word in the raw text, which an uncased backbone cannot see. No torch.

Capitalisation as a small table of embeddings beside word vectors that lack it: Collobert et al. 2011, section 4.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from indexer.iob import SIGNS, Offsets

Shapes = npt.NDArray[np.int64]
"""(n,): a `Shape` for each word."""

# From this share on capitals say nothing of a word, in texts of at least so many words with letters that have case;
# the first words of sentences, which are capitalised anyway, do not count.
_UNTELLING = 0.7
_ENOUGH = 3

_SENTENCE_ENDS = frozenset(".!?…")
_LINK_STARTS = frozenset({"http", "https", "www"})
_REMEMBERED = 65_536  # words whose shape is kept: frequent ones are looked up in a tenth of the time


class Shape(IntEnum):
    """What a word looks like. The values stand in checkpoints: new ones go to the end.

    In a text of which most words are capitalised, or none is, case says little; it has shapes of its own there.
    """

    NONE = 0  # padding
    UNKNOWN = 1  # what dropout puts in a shape's place while a head is trained
    LOWER = 2
    LOWER_WITHOUT_CAPITALS = 3  # in a text without any capital
    TITLE = 4  # Capitalised
    TITLE_FIRST = 5  # the first word of a text, a line or a sentence
    TITLE_IN_HEADLINE = 6  # in a text of which most words are capitalised
    UPPER = 7  # CAPITALS
    UPPER_IN_CAPITALS = 8  # in a text that is written in capitals
    INITIAL = 9  # one capital letter
    MIXED = 10  # iPhone, McDonald
    DIGITS = 11
    DIGITS_LOWER = 12  # 2nd, b2b
    DIGITS_UPPER = 13  # F16, Covid19
    NO_CASE = 14  # letters of a script without case
    SENTENCE_END = 15
    PUNCTUATION = 16  # and symbols
    HANDLE = 17  # @name, the sign included
    TAG_LOWER = 18  # #name
    TAG_UPPER = 19  # #Name
    LINK = 20  # parts of a link or an address


_CAPITALISED = {Shape.TITLE, Shape.TITLE_FIRST, Shape.UPPER, Shape.INITIAL, Shape.MIXED, Shape.DIGITS_UPPER}
_CASED = _CAPITALISED | {Shape.LOWER, Shape.DIGITS_LOWER}
_COUNTED = {Shape.LOWER, Shape.TITLE, Shape.UPPER, Shape.MIXED}
_LINK, _HANDLE = Shape.LINK, Shape.HANDLE
# Tables indexed by the shape: a set would ask each member for its hash, which costs more than all the rest.
_IS_CAPITALISED = tuple(shape in _CAPITALISED | {Shape.TAG_UPPER} for shape in Shape)
_IS_COUNTED = tuple(shape in _COUNTED for shape in Shape)
_TITLES = (Shape.TITLE, Shape.TITLE_FIRST)
_IS_CASED = tuple(shape in _CASED for shape in Shape)
_IS_WORD = tuple(shape in _CASED | {Shape.DIGITS, Shape.NO_CASE} for shape in Shape)


def word_shapes(text: str, words: Offsets) -> list[int]:
    """The shape of each word of a text, as cut by `iob.split_words`.

    >>> word_shapes("Ada met", [(0, 3), (4, 7)]) == [Shape.TITLE_FIRST, Shape.LOWER]
    True
    """
    shapes: list[int] = []
    first, before, end_before, kind = True, "", -1, Shape.NONE
    lines = "\n" in text
    for start, end in words:
        word, glued = text[start:end], start == end_before
        shape = form(word[1:] if word[0] in SIGNS and len(word) > 1 else word)
        if lines and not glued and "\n" in text[max(end_before, 0) : start]:
            first = True
        address = word == "@" and before[-1:].isalnum()  # name@example.org
        if word in _LINK_STARTS or (glued and (address or kind is _LINK)):
            shape = _LINK
        elif word[0] == "@":
            shape = _HANDLE
        elif word[0] == "#" and _IS_CASED[shape]:
            shape = Shape.TAG_UPPER if _IS_CAPITALISED[shape] else Shape.TAG_LOWER
        elif _IS_WORD[shape]:
            if first:
                shape, first = Shape.TITLE_FIRST if shape is Shape.TITLE else shape, False
        elif shape is Shape.SENTENCE_END:
            first = first or kind is not Shape.INITIAL  # "J. Smith", "U.S. Army"
        shapes.append(shape)
        before, end_before, kind = word, end, shape
    return _without_telling(shapes)


def _without_telling(shapes: list[int]) -> list[int]:
    """The shapes with those for case that says little, where a text's own capitals, or their lack, make it so."""
    if not any(_IS_CAPITALISED[shape] for shape in shapes):
        return [_LOWERED[shape] for shape in shapes]
    counted = sum(_IS_COUNTED[shape] for shape in shapes)
    if counted < _ENOUGH:
        return shapes
    if shapes.count(Shape.UPPER) >= _UNTELLING * counted:
        return [Shape.UPPER_IN_CAPITALS if shape == Shape.UPPER else shape for shape in shapes]
    if counted - shapes.count(Shape.LOWER) >= _UNTELLING * counted:
        return [Shape.TITLE_IN_HEADLINE if shape in _TITLES else shape for shape in shapes]
    return shapes


@lru_cache(maxsize=_REMEMBERED)
def form(word: str) -> Shape:
    """The shape of a word by itself.

    >>> [form(word).name for word in ("Ada", "NATO", "J", "iPhone", "2nd", "1815", "%")]
    ['TITLE', 'UPPER', 'INITIAL', 'MIXED', 'DIGITS_LOWER', 'DIGITS', 'PUNCTUATION']
    """
    if word in _SENTENCE_ENDS:
        return Shape.SENTENCE_END
    digits = any(map(str.isnumeric, word))
    if word.islower():  # of the characters that have case, and there is one
        return Shape.DIGITS_LOWER if digits else Shape.LOWER
    cased = any(character.isupper() or character.istitle() or character.islower() for character in word)
    if not cased:
        letters = any(map(str.isalpha, word))
        numeric = digits and not any(character.isalpha() and not character.isnumeric() for character in word)
        return Shape.DIGITS if numeric else Shape.NO_CASE if letters else Shape.PUNCTUATION
    if digits:
        return Shape.DIGITS_UPPER
    if word.isupper():
        return Shape.INITIAL if sum(map(str.isalpha, word)) == 1 else Shape.UPPER
    capital = word[0].isupper() or word[0].istitle()  # "ǅ" is a capital before small letters
    rest = word[1:]
    return Shape.TITLE if capital and rest == rest.lower() else Shape.MIXED


def _table(changes: dict[Shape, Shape]) -> Shapes:
    return np.array([changes.get(shape, shape) for shape in Shape], dtype=np.int64)


LOWERED = _table(
    dict.fromkeys(_COUNTED | {Shape.TITLE_FIRST, Shape.INITIAL}, Shape.LOWER_WITHOUT_CAPITALS)
    | dict.fromkeys({Shape.TITLE_IN_HEADLINE, Shape.UPPER_IN_CAPITALS}, Shape.LOWER_WITHOUT_CAPITALS)
    | {Shape.DIGITS_UPPER: Shape.DIGITS_LOWER, Shape.TAG_UPPER: Shape.TAG_LOWER}
)
"""`LOWERED[shapes]` are the shapes of the same text in small letters."""
_LOWERED = LOWERED.tolist()

CAPITALS = _table(
    dict.fromkeys(
        _COUNTED | {Shape.TITLE_FIRST, Shape.TITLE_IN_HEADLINE, Shape.LOWER_WITHOUT_CAPITALS}, Shape.UPPER_IN_CAPITALS
    )
    | {Shape.DIGITS_LOWER: Shape.DIGITS_UPPER, Shape.TAG_LOWER: Shape.TAG_UPPER}
)
"""`CAPITALS[shapes]` are the shapes of the same text in capitals, up to words of one letter."""
