"""The words of the filter language: where they start, where they end, and how quotes and escapes are read."""

from __future__ import annotations

import unicodedata
from typing import NoReturn

from indexer.errors import FilterError

RESERVED = frozenset({"and", "or", "not", "in", "exists"})
"""Keywords, in any case: as a field they need backticks, as a value quotes."""

SPECIAL = frozenset({"entity", "label", "id"})
"""Names, in lower case, that are not metadata unless in backticks."""

_SIMPLE_ESCAPES = {"\\": "\\", '"': '"', "'": "'", "`": "`", "n": "\n", "t": "\t"}
_HEX_ESCAPES = {"u": 4, "U": 8}
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")


def is_name_character(character: str) -> bool:
    """Letters, marks and digits of any script, _ and -."""
    return character in "_-" or unicodedata.category(character)[0] in "LMN"


def is_type_character(character: str) -> bool:
    """What a bare entity type is made of."""
    return character in "/@+." or is_name_character(character)


def is_value_character(character: str) -> bool:
    """What a bare value is made of."""
    return character == ":" or is_type_character(character)


def printable(text: str) -> str:
    """The text with ? for each lone surrogate, which no stream could print; offsets stay the same."""
    return text.encode("utf-8", "replace").decode("utf-8")


class Scanner:
    """A place in a text, `at`, that moves forward."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def fail(self, problem: str, at: int | None = None) -> NoReturn:
        """Raise FilterError at a place, by default here."""
        raise FilterError(problem, text=self.text, position=self.at if at is None else at) from None

    def skip_space(self) -> int:
        """Move past white space and return the place."""
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.at

    def next_is(self, symbol: str) -> bool:
        return self.text.startswith(symbol, self.at)

    def take(self, symbol: str) -> bool:
        """Move past a symbol if it stands here."""
        if self.next_is(symbol):
            self.at += len(symbol)
            return True
        return False

    def peek_name(self) -> str:
        """The run of name characters that starts here; may be empty."""
        end = self.at
        while end < len(self.text) and is_name_character(self.text[end]):
            end += 1
        return self.text[self.at : end]

    def peek_type(self) -> str:
        """The run of type characters that starts here; may be empty."""
        end = self.at
        while end < len(self.text) and is_type_character(self.text[end]):
            end += 1
        return self.text[self.at : end]

    def peek_value(self, *, stop_at_dots: bool) -> str:
        """The run of value characters that starts here; may be empty. In a range, two dots end it."""
        end = self.at
        while end < len(self.text) and is_value_character(self.text[end]):
            if stop_at_dots and self.text.startswith("..", end):
                break
            end += 1
        return self.text[self.at : end]

    def take_keyword(self, keyword: str) -> bool:
        """Move past white space, and past the keyword if it stands there, in any case."""
        self.skip_space()
        word = self.peek_name()
        if word.lower() != keyword:
            return False
        self.at += len(word)
        return True

    def take_quoted(self) -> str:
        """The text from the quote that stands here (" ' or `) to the next one like it, escapes resolved."""
        start = self.at
        quote = self.text[start]
        self.at += 1
        characters: list[str] = []
        while not self.take(quote):
            if self.at == len(self.text):
                self.fail(f"expected a closing {quote} for the one that opens", start)
            if self.text[self.at] == "\\":
                characters.append(self._take_escape())
            else:
                characters.append(self.text[self.at])
                self.at += 1
        return "".join(characters)

    def _take_escape(self) -> str:
        start = self.at
        letter = self.text[start + 1 : start + 2]
        if letter in _SIMPLE_ESCAPES:
            self.at += 2
            return _SIMPLE_ESCAPES[letter]
        if letter not in _HEX_ESCAPES:
            self.fail("expected an escape: \\\\ \\\" \\' \\` \\n \\t \\uXXXX or \\UXXXXXXXX")
        size = _HEX_ESCAPES[letter]
        digits = self.text[start + 2 : start + 2 + size]
        if len(digits) < size or not _HEX_DIGITS.issuperset(digits):
            self.fail(f"expected {size} hexadecimal digits after \\{letter}")
        code = int(digits, 16)
        if 0xD800 <= code <= 0xDFFF or code > 0x10FFFF:
            self.fail("expected a Unicode character; write those beyond \\uFFFF as one \\UXXXXXXXX")
        self.at += 2 + size
        return chr(code)
