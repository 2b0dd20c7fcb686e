"""What the backbone is adapted on, as the files that docs/training/default-backbone.toml names.

A tenth of everything, by a hash of its key, is kept out of the training files and goes into `*-dev.jsonl`: so the two
stay apart however often the files are written again.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from default_model.class_sets import TOPICS
from default_model.tag_sets import tag_sets
from indexer.training import data
from indexer.training.data import TaggedText

Row = dict[str, Any]

SNIPPET = 550  # characters of an abstract or paragraph, about 110 tokens: what a pass over it costs grows with them
LIMITS = {"acl": 6000, "wiki": 4000, "articles": 3000, "trivia": 4000, "glosses": 4000, "topics": 2500}


def write_pairs(source: Path, folder: Path) -> None:
    """Write all files for the data sets in `source`."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs: dict[str, Iterator[tuple[str, Row]]] = {
        "acl": papers(source),
        "scifact": claims(source),
        "wiki": paragraphs(source),
        "articles": neighbours(source),
        "trivia": questions(source),
        "glosses": glosses(source),
        "snli": triples(source),
        "topics": topics(source),
    }
    for name, rows in pairs.items():
        train: list[Row] = []
        dev: list[Row] = []
        for key, row in rows:
            (dev if held_out(key) else train).append(row)
        generator = random.Random(name)
        for part, kept, limit in (("", train, LIMITS.get(name, len(train))), ("-dev", dev, 500)):
            kept = generator.sample(kept, min(limit, len(kept)))
            write(folder / f"{name}{part}.jsonl", kept)
    tags = tag_sets(source)
    for name, texts in [*tags.train.items(), *tags.dev.items()]:
        write(
            folder / f"tags-{name.replace(' ', '-')}.jsonl",
            (spans_as_json(text) for text in texts if text.text.strip()),
        )


def held_out(key: str) -> bool:
    """One in ten, always the same ones."""
    return hashlib.sha256(key.encode()).digest()[0] % 10 == 0


def papers(source: Path) -> Iterator[tuple[str, Row]]:
    """Title → abstract."""
    for row in data.read_jsonl(source / "acl-anthology" / "acl-2016-2024.jsonl.xz"):
        if row["abstract"] and len(row["title"]) > 10:
            yield row["id"], {"first": row["title"], "second": cut(row["abstract"])}


def claims(source: Path) -> Iterator[tuple[str, Row]]:
    """Claim → title and abstract of a paper that speaks of it."""
    found = data.read_beir(source / "scifact", split="train")
    for query, relevant in found.relevant.items():
        for document in relevant:
            yield query, {"first": found.queries[query], "second": cut(found.documents[document], SNIPPET + 250)}


def paragraphs(source: Path) -> Iterator[tuple[str, Row]]:
    """One sentence of a paragraph → the others (the inverse cloze task, Lee et al. 2019)."""
    generator = random.Random(3)
    seen: set[str] = set()
    for row in data.read_jsonl(source / "wiki-en" / "wiki-paragraphs.jsonl.xz"):
        sentences = re.split(r"(?<=[a-z0-9)][.!?]) (?=[A-Z])", row["text"])
        if row["title"] in seen or len(sentences) < 3 or len(row["text"]) < 300:
            continue
        seen.add(row["title"])
        chosen = generator.randrange(len(sentences))
        if not 30 < len(sentences[chosen]) < 250:
            continue
        others = " ".join(sentences[:chosen] + sentences[chosen + 1 :])
        yield row["title"], {"first": sentences[chosen], "second": cut(others)}


def neighbours(source: Path, limit: int = SNIPPET) -> Iterator[tuple[str, Row]]:
    """Paragraph → the next long one of its article."""
    articles: dict[str, list[str]] = {}
    for row in data.read_jsonl(source / "wiki-en" / "wiki-paragraphs.jsonl.xz"):
        if len(row["text"]) > 150:
            articles.setdefault(row["title"], []).append(row["text"])
    for title, texts in sorted(articles.items()):
        if len(texts) > 1:
            yield title, {"first": cut(texts[0], limit), "second": cut(texts[1], limit)}


def questions(source: Path) -> Iterator[tuple[str, Row]]:
    """Question → answer."""
    for row in data.read_jsonl(source / "opentrivia" / "opentrivia.jsonl.xz"):
        if not re.match(r"(?i)(true|false|all of|none of|both|\d+$)", str(row["answer"])):
            yield row["question"], {"first": row["question"], "second": str(row["answer"])}


def glosses(source: Path) -> Iterator[tuple[str, Row]]:
    """Example of a word → the meaning that it shows."""
    for row in data.read_jsonl(source / "oewn" / "oewn-synsets.jsonl.xz"):
        if row["examples"]:
            word = row["members"][0].replace("_", " ")
            yield row["id"], {"first": row["examples"][0], "second": f"{word}: {row['definition']}"}


def triples(source: Path) -> Iterator[tuple[str, Row]]:
    """Premise → what follows from it, and what contradicts it."""
    found: dict[str, dict[str, str]] = {}
    for name in ("snli-dev.tsv", "snli-test.tsv"):
        for line in (source / "snli" / name).read_text(encoding="utf-8").splitlines():
            label, premise, hypothesis = line.split("\t")
            found.setdefault(data.detokenise(premise), {})[label] = data.detokenise(hypothesis)
    for premise, rows in found.items():
        if {"entailment", "contradiction"} <= rows.keys():
            yield premise, {"first": premise, "second": rows["entailment"], "negative": rows["contradiction"]}


def topics(source: Path) -> Iterator[tuple[str, Row]]:
    """Text and topic."""
    for row in data.read_dbpedia(source / "dbpedia14-sub" / "train.csv"):
        yield row.text, {"text": cut(row.text, 400), "label": TOPICS[row.label]}


def spans_as_json(text: TaggedText) -> Row:
    """As the trainer reads it."""
    return {"text": text.text, "entities": [[start, end, kind] for kind, start, end in text.spans]}


def cut(text: str, limit: int = SNIPPET) -> str:
    """Whole words, `limit` characters at most."""
    return text if len(text) <= limit else text[: limit + 1].rpartition(" ")[0]


def write(path: Path, rows: Iterable[Row]) -> None:
    """JSON Lines."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
