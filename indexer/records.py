"""The records that everything passes around. No torch, no I/O.

All offsets are code points into the document's text, start inclusive, end exclusive: `text[start:end]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
"""fp32 array; its shape is given where it is used."""

Metadata = Mapping[str, Any]
"""A JSON object: strings, 64-bit integers, finite floats, booleans, null, arrays and objects of these."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text with its id and metadata, as a reader yields it and as the index keeps it.

    `metadata`: a dict of what JSON has. `vector`: an embedding made elsewhere, numbers (dimension,), which is taken as
    it is, in fp32; such a document may have an empty text. `None`: the model embeds the text.
    """

    id: str
    text: str
    metadata: Metadata = field(default_factory=dict)
    vector: npt.ArrayLike | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Passage:
    """The part of a document that one vector stands for. `tokens` counts its tokens, special ones included."""

    start: int
    end: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Label:
    """A class and its probability in [0, 1], after temperature scaling."""

    name: str
    score: float

    def to_json(self) -> dict[str, Any]:
        """As every output has it."""
        return {"name": self.name, "score": self.score}


@dataclass(frozen=True, slots=True)
class Span:
    """A named entity. `score` is the mean probability of its words' labels, in [0, 1]."""

    type: str
    start: int
    end: int
    score: float

    def to_json(self, text: str) -> dict[str, Any]:
        """As every output has it; `text` is what the offsets are of."""
        return {
            "type": self.type,
            "text": text[self.start : self.end],
            "start": self.start,
            "end": self.end,
            "score": self.score,
        }


def label_json(label: Label | None) -> dict[str, Any] | None:
    """The class as JSON, null where the class head abstains."""
    return None if label is None else label.to_json()


@dataclass(frozen=True, slots=True)
class Analysis:
    """What one pass through the model says about one document.

    - `passages`: in the order of the text, covering every token of it.
    - `vectors`: fp32, (len(passages), dimension): each passage's embedding, not normalised.
    - `pooled`: fp32, (dimension,): the embedding of the whole document, pooled over all tokens of all passages.
    - `label`: `None` where the class head abstains, or where there is no class head.
    - `spans`: sorted by start; empty where there is no tag head.
    """

    passages: tuple[Passage, ...]
    vectors: FloatArray
    pooled: FloatArray
    label: Label | None
    spans: tuple[Span, ...]
