"""What a person types → an expression for the keyword index: words, "phrases" and prefixes*. Never a syntax error."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

_PIECES = re.compile(r'"([^"]*)"(\*?)|([^\s"]+)')
# The last word of a term, with a vowel before the ending, as without one the third step changes nothing, and of a
# length with which it gets a stem.
_CHANGED_FIRST = re.compile(
    r"(?<![a-z0-9])(?=[a-z0-9]{3,60}$)[a-z0-9]*(?:[aeiou]|(?<=[b-df-hj-np-tv-xz])y)[a-z0-9]*(?:y|(?<!s)s|(?<!e)ed|ing)$",
    re.IGNORECASE | re.ASCII,
)
MAX_WORDS = 256  # of a query; the rest of a long text is left out, the ranking by meaning reads all of it


@dataclass(frozen=True, slots=True)
class Term:
    """One or several words that must follow each other; with `prefix` the last one is only the beginning of a word."""

    text: str
    prefix: bool = False


def terms_of(text: str) -> list[Term]:
    """The terms of a query, each once, in order.

    >>> terms_of('supply "Halden Steel" deliver* deliver*')
    [Term(text='supply', prefix=False), Term(text='Halden Steel', prefix=False), Term(text='deliver', prefix=True)]
    """
    terms: dict[Term, None] = {}
    for phrase, star, word in _PIECES.findall(text.replace("\0", " ")):
        if phrase or star:
            found = [Term(" ".join(phrase.split()), prefix=star == "*")]
        else:
            # "x-ray" is two words for the keyword index, one after the other; so are the parts of an odd quote.
            found = [Term(word.rstrip("*"), prefix=word.endswith("*"))]
        terms.update({term: None for term in found if _has_word(term.text)})
    return list(terms)[:MAX_WORDS]


def expression_of(text: str) -> str | None:
    """FTS5's MATCH expression for documents with any of the terms; `None` where there is no word to look for.

    Each term is a string in FTS5's sense, in which nothing but the quote is special.

    >>> expression_of('steel AND "ice port" deliver*')
    '"steel" OR "AND" OR "ice port" OR "deliver" *'
    """
    terms = terms_of(text)
    if not terms:
        return None
    return " OR ".join(_written(term) for term in terms)


def _written(term: Term) -> str:
    """A term in FTS5's syntax.

    FTS5 takes the stem of a beginning, too: "pay" becomes "pai", with which "payment" does not begin, and "bus" becomes
    "bu". So where Porter's first step would change it, the word itself is looked for, and as a beginning another one
    that only the third step changes, back into what was typed: "payness".
    """
    text = term.text.replace('"', '""')
    if not term.prefix:
        return f'"{text}"'
    if _CHANGED_FIRST.search(text) is None:
        return f'"{text}" *'
    return f'"{text}" OR "{text}ness" *'


def _has_word(text: str) -> bool:
    """True where the tokenizer finds a word: a letter, a digit, or what it counts as one (private use, symbols not)."""
    return any(unicodedata.category(character)[0] in "LNCS" for character in text)
