"""Texts that label themselves: the heads of a first round, corrected by what capital letters and titles tell."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from default_model.class_sets import TOPICS
from default_model.classes import Classifier, class_logits
from default_model.common import ENTITY_TYPES, Floats
from default_model.features import WordStates
from default_model.tag_head import DevSet, Tagger, predict_words, word_probabilities
from indexer import iob
from indexer.training import data


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph of an article, and the article's title without what stands in brackets.

    `organisation`: it begins an article that says to be about a company, a school, a club or the like.
    """

    text: str
    title: str
    lead: bool
    organisation: bool


# What the title of an article of a topic is: an entity of a type, or (None) no person, organisation or place.
TITLE_TYPES = {
    "Company": "ORG",
    "EducationalInstitution": "ORG",
    "Artist": "PER",
    "Athlete": "PER",
    "OfficeHolder": "PER",
    "NaturalPlace": "LOC",
    "Village": "LOC",
    "Animal": None,
    "Plant": None,
    "Album": None,
    "Film": None,
    "WrittenWork": None,
}
CONNECTORS = ("of", "de", "del", "du", "di", "von", "van")


ORGANISATION = re.compile(
    r"^[^.]*? (?:is|was) (?:a|an|the) (?:(?!(?:of|for|by|at|in|as|from|who|that|to|with|and) )[\w-]+ ){0,6}"
    r"(?:company|corporation|firm|bank|airline|manufacturer|retailer|university|college|school|institute"
    r"|organi[sz]ation|agency|association|society|foundation|party|club|charity|council|league)"
    r"(?:[.,]| (?:in|based|located|founded|headquartered|established|that|which|of|for|owned|operating|with|from) )"
)
# What people and languages are called: no place, where a word in small letters follows.
NATIONALITY = re.compile(r"\w+(?:ian|ish|ese|ican|ench|utch|ean)|German|Greek|Thai|Swiss|Iraqi|Israeli|Welsh|Zulu")


@dataclass(frozen=True, slots=True)
class SecondRound:
    """How many heads of the first round, each from a seed of its own, label which texts for the head that is kept."""

    teachers: int = 2
    width: int = 128  # of those heads, which read all layers; the one that is kept may be narrower and read fewer
    soft: float = 0.5  # weight of what they think of a word beside the label that they give it together
    topics: int = 3000  # texts of DBpedia
    headlines: int = 3000  # sentences of STS-B's training part: headlines, captions, posts
    questions: int = 2000  # of OpenTrivia


def unlabelled_texts(folder: Path, paragraphs: int, settings: SecondRound) -> list[Paragraph]:
    """Texts of several kinds, all of data that the model is trained on anyway."""
    generator = random.Random(6)
    topics = [row.text for row in data.read_dbpedia(folder / "dbpedia14-sub" / "train.csv") if 60 < len(row.text) < 700]
    pairs = data.read_stsb(folder / "stsb" / "sts-train.csv")
    sentences = sorted({text for pair in pairs for text in (pair.first, pair.second)})
    questions = [row["question"] for row in data.read_jsonl(folder / "opentrivia" / "opentrivia.jsonl.xz")]
    return [
        *wiki_paragraphs(folder, paragraphs),
        *(described(text) for text in generator.sample(topics, min(settings.topics, len(topics)))),
        *(
            Paragraph(text, title="", lead=False, organisation=False)
            for texts, count in ((sentences, settings.headlines), (questions, settings.questions))
            for text in generator.sample(texts, min(count, len(texts)))
        ),
    ]


def described(text: str) -> Paragraph:
    """A text that describes one thing, which it names first."""
    title = re.match(r"([A-Z][^,.;:]{1,60}?) (?:is|was|are|were) ", text)
    return Paragraph(text, title.group(1) if title else "", lead=title is not None, organisation=False)


def wiki_paragraphs(folder: Path, count: int) -> list[Paragraph]:
    """A random sample, three tenths of it about organisations, the type that is hardest to tell."""
    rows = [
        Paragraph(
            row["text"],
            row["title"].split(" (")[0],
            lead := row["id"].endswith("-0"),
            bool(lead and ORGANISATION.match(row["text"])),
        )
        for row in data.read_jsonl(folder / "wiki-en" / "wiki-paragraphs.jsonl.xz")
        if 60 < len(row["text"]) < 700
    ]
    generator = random.Random(5)
    organisations = [row for row in rows if row.organisation]
    others = [row for row in rows if not row.organisation]
    share = min(count * 3 // 10, len(organisations))
    return generator.sample(organisations, share) + generator.sample(others, count - share)


def self_label(
    teachers: Sequence[Tagger],
    classifier: Classifier,
    paragraphs: Sequence[Paragraph],
    dev: DevSet,
    means: Floats,
) -> WordStates:
    """The paragraphs' states with what the teachers think, and labels from it, corrected by capitals and titles.

    `means`: fp32 (paragraphs, 4, 384), the layers' means, of which the classifier tells the topic.
    """
    labels = np.full_like(dev.states.labels, iob.IGNORED)
    probabilities = word_probabilities(teachers, dev)
    soft = np.zeros((len(labels), 2 * len(ENTITY_TYPES) + 1), dtype=np.float16)
    topics = (class_logits(classifier.head, means) / classifier.temperature).softmax(1)
    for number, (found, probability) in enumerate(predict_words(dev, probabilities)):
        start, end = dev.states.starts[number : number + 2]
        scores, words = topics[number], dev.words[number]
        topic = TOPICS[int(scores.argmax())] if paragraphs[number].lead and scores.max() > 0.9 else None
        if paragraphs[number].organisation:
            topic = "Company"
        corrected = correct_labels(paragraphs[number], words.offsets, found, probability, topic)
        labels[start:end][words.known] = corrected[words.known]
        # What the teachers think does not count where they were corrected.
        asked = words.known & ((corrected == found) | (corrected == iob.IGNORED))
        soft[start:end][asked] = probabilities[number][asked]
    return replace(dev.states, labels=labels, soft=soft)


def correct_labels(
    paragraph: Paragraph,
    words: iob.Offsets,
    labels: npt.NDArray[np.int64],
    probability: npt.NDArray[np.float32],
    topic: str | None,
) -> npt.NDArray[np.int64]:
    """Word labels; `iob.IGNORED` where nothing is certain.

    A name does not begin or end with a word in small letters, and "Danish ships" names no place. An organisation
    or a place goes on over the capitalised words beside it. The title of an article whose topic is sure has that
    topic's type. All other words in small letters are O, and so are capitalised ones if the teacher is sure.
    """
    text = paragraph.text
    surface = [text[start:end] for start, end in words]
    capital = [word[0].isupper() for word in surface]
    title = title_spans(text, paragraph.title) if topic in TITLE_TYPES else []
    spans: list[tuple[int, int, int]] = []
    adjectives: list[int] = []
    for kind, first, end in iob.spans_of_labels(labels):
        while first < end and not (capital[first] or surface[first][0].isdigit()):
            first += 1
        while end > first and not (capital[end - 1] or surface[end - 1][0].isdigit() or surface[end - 1] == "."):
            end -= 1
        if first == end or not any(capital[first:end]):
            continue
        small_behind = end < len(words) and surface[end].islower()
        if end - first == 1 and small_behind and NATIONALITY.fullmatch(surface[first]):
            adjectives.append(first)
            continue
        if ENTITY_TYPES[kind] != "PER":
            first, end = grow(first, end, text, words, surface, capital, labels)
        if spans and first < spans[-1][2]:
            continue
        spans.append((kind, first, end))
    certain = probability >= 0.7
    result = np.where(np.array(capital, dtype=bool) & ~certain, iob.IGNORED, 0)
    result[labels > 0] = iob.IGNORED
    for index, word in enumerate(surface):
        if not capital[index] and word[0].isalpha():
            result[index] = 0
    result[adjectives] = 0
    for kind, first, end in spans:
        sure = probability[first:end].mean() >= 0.6
        result[first:end] = 2 + 2 * kind if sure else iob.IGNORED
        if sure:
            result[first] = 1 + 2 * kind
    for start, stop in title:
        inside = np.array([word for word, (a, b) in enumerate(words) if a >= start and b <= stop], dtype=np.int64)
        behind = result[inside[-1] + 1 : inside[-1] + 2] if len(inside) else result[:0]
        if len(inside) == 0 or ((behind > 0).any() and (behind % 2 == 0).any()):
            continue  # the name goes on behind the title
        kind_name = TITLE_TYPES[topic] if topic else None
        if kind_name is None:
            result[inside] = 0
        elif result[inside[0]] <= 0 or result[inside[0]] % 2 == 1:
            result[inside] = 2 + 2 * ENTITY_TYPES.index(kind_name)
            result[inside[0]] -= 1
    return result


def grow(
    first: int,
    end: int,
    text: str,
    words: iob.Offsets,
    surface: Sequence[str],
    capital: Sequence[bool],
    labels: npt.NDArray[np.int64],
) -> tuple[int, int]:
    """Take in capitalised words to both sides, over "of" and its like, but nothing of another name."""

    def beside(index: int) -> bool:
        return index >= 0 and index + 1 < len(words) and text[words[index][1] : words[index + 1][0]] == " "

    while end < len(words) and labels[end] == 0 and beside(end - 1) and surface[end - 1] != ".":
        if capital[end]:
            end += 1
        elif surface[end] in CONNECTORS and end + 1 < len(words) and capital[end + 1] and beside(end):
            if labels[end + 1] != 0:
                break
            end += 2
        else:
            break
    # The first word of a sentence is capitalised anyway, so a name is not grown onto one.
    while first > 1 and capital[first - 1] and labels[first - 1] == 0 and beside(first - 1):
        if not beside(first - 2) or surface[first - 2] in ".!?":
            break
        first -= 1
    return first, end


def title_spans(text: str, title: str) -> list[tuple[int, int]]:
    """Where a title stands in a text, as whole words."""
    pattern = r"(?<!\w)" + re.escape(title) + r"(?!\w)"
    return [match.span() for match in re.finditer(pattern, text)] if title[:1].isupper() else []
