"""Texts into sentences, by rules on their characters: offsets, no model, no language to choose.

A sentence ends

- behind `.`, `!`, `?` or `…`, however many of them stand together, with the quotes and brackets that close there,
  where white space follows and then no lower-case letter. A full stop does not end one behind an abbreviation
  (`Dr.`, `No. 7`, a single letter as in "J. Smith", or letters with dots as in "U.S." and "p.m.");
- behind `。`, `！`, `？` and `｡`, with what closes there, whatever follows;
- at an empty line.

So "3.14", "example.com" and a line break inside a paragraph end none. Sentences that these rules miss, after "etc." or
"U.S.", stay joined to the next one.
"""

from __future__ import annotations

import re

# Without the last full stop, and in any case.
_ABBREVIATION = re.compile(
    "adm|al|assoc|ave|bd|blvd|brig|bros|bzw|capt|cf|co|col|comdr|corp|cpl|dept|dr|ed|eds|est|etc|evtl|gen|ggf|gov|hon|inc|"
    "jr|lt|ltd|maj|messrs|mr|mrs|ms|mt|prof|pvt|rep|rev|rs|sen|sgt|sr|st|ste|str|supt|usu|usw|vgl|viz|vs",
    re.IGNORECASE,
)
# Many of these are words as well: abbreviations only before a digit.
_NUMBERED = re.compile(
    "app|approx|apr|art|aug|ca|ch|dec|eqs?|feb|figs?|jan|jul|jun|mar|nos?|nov|nr|oct|op|para|pp?|pt|sec|sept?|tab|vols?|yr",
    re.IGNORECASE,
)

_CLOSING = "\"'”’»)\\]}〉》」』】）"
_END = re.compile(
    rf"(?<![.!?…])(?P<stop>[.!?…]+)[{_CLOSING}]*(?=\s)"  # Latin and most other scripts
    rf"|[。！？｡]+[{_CLOSING}]*"  # Chinese and Japanese, where no white space follows
    r"|(?=\n[^\S\n]*\n)|(?=\r\n[^\S\r\n]*\r\n)"
)
_FOLLOWING = re.compile(r"\s*(?:([^\W\d_])|(\d))?")
_LAST_WORD = re.compile(r"[^\s(\[{\"'“‘«]+$")
_INITIALS = re.compile(r"[^\W\d_](?:\.[^\W\d_])*")
_LONGEST_WORD = 20  # characters looked at before a full stop; no abbreviation is longer


def split_sentences(text: str) -> list[tuple[int, int]]:
    """Offsets of the sentences, in order, without the white space around them; together they hold everything else.

    >>> text = "Dr. Ada met J. Smith at 3.15 p.m. today. Why? \\"No idea!\\" he said."
    >>> [text[start:end] for start, end in split_sentences(text)]
    ['Dr. Ada met J. Smith at 3.15 p.m. today.', 'Why?', '"No idea!" he said.']
    """
    sentences = []
    first = 0
    for match in _END.finditer(text):
        if match["stop"] is not None and not _ends(text, match):
            continue
        sentences.append((first, match.end()))
        first = match.end()
    sentences.append((first, len(text)))
    trimmed = [_trimmed(text, start, end) for start, end in sentences]
    return [(start, end) for start, end in trimmed if start < end]


def _ends(text: str, match: re.Match[str]) -> bool:
    """Whether `.`, `!`, `?` or `…` before white space ends a sentence."""
    following = _FOLLOWING.match(text, match.end())
    letter, digit = following.groups() if following is not None else (None, None)
    if letter is not None and letter.islower():
        return False
    if match["stop"] != ".":
        return True
    word = _LAST_WORD.search(text, max(0, match.start() - _LONGEST_WORD), match.start())
    if word is None:
        return True
    held = [_ABBREVIATION, _INITIALS] + ([_NUMBERED] if digit is not None else [])
    return not any(pattern.fullmatch(word.group()) for pattern in held)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())
