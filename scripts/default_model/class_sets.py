"""The texts of the class head: of its 14 topics, and of what is none of them."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from default_model.tag_sets import tag_sets
from indexer.training import data
from indexer.training.data import LabelledText

TOPICS = [
    "Company",
    "EducationalInstitution",
    "Artist",
    "Athlete",
    "OfficeHolder",
    "MeanOfTransportation",
    "Building",
    "NaturalPlace",
    "Village",
    "Animal",
    "Plant",
    "Album",
    "Film",
    "WrittenWork",
]
# Glosses of these kinds may describe one of the 14 topics, so they cannot stand for what is none of them.
TOPICAL_GLOSSES = (
    "noun.animal",
    "noun.plant",
    "noun.location",
    "noun.person",
    "noun.object",
    "noun.artifact",
)


@dataclass(frozen=True, slots=True)
class ClassSets:
    """DBpedia texts to train on and held out; other texts to push to uniform, and others only to measure."""

    train: list[LabelledText]
    held_out: list[LabelledText]
    exposed: dict[str, list[str]]
    measured: dict[str, list[str]]


def class_sets(folder: Path) -> ClassSets:
    generator = random.Random(11)
    rows = data.read_dbpedia(folder / "dbpedia14-sub" / "train.csv")
    generator.shuffle(rows)
    cut = len(rows) // 10
    train = rows[cut:]
    # First sentences as well: users' texts can be shorter than an encyclopaedia's paragraphs.
    shorter = [
        LabelledText(text, row.label)
        for row in train
        if len(text := first_sentence(row.text)) > 40 and text != row.text
    ]
    outliers = outlier_texts(folder)
    exposed, measured = {}, {}
    for name, texts in outliers.items():
        texts = generator.sample(texts, min(len(texts), 2500))
        exposed[name], measured[f"{name} (held out)"] = texts[: -len(texts) // 5], texts[-len(texts) // 5 :]
    for name, texts in unseen_texts(folder).items():
        measured[name] = generator.sample(texts, min(len(texts), 1000))
    return ClassSets(train + shorter, rows[:cut], exposed, measured)


def outlier_texts(folder: Path) -> dict[str, list[str]]:
    """Texts that are none of the topics, of kinds that the head is trained to abstain on."""
    clinc = json.loads((folder / "clinc150" / "data_full.json").read_text(encoding="utf-8"))
    tags = tag_sets(folder).train
    papers = data.read_jsonl(folder / "acl-anthology" / "acl-2016-2024.jsonl.xz")
    abstracts = data.read_jsonl(folder / "scifact" / "corpus.jsonl.xz")
    synsets = data.read_jsonl(folder / "oewn" / "oewn-synsets.jsonl.xz")
    trivia = data.read_jsonl(folder / "opentrivia" / "opentrivia.jsonl.xz")
    return {
        "banking77": data.read_csv_column(folder / "banking77" / "train.csv", "text"),
        "clinc150": [text for text, _ in clinc["train"]],
        "acl-anthology": [row["abstract"] for row in papers if 200 < len(row["abstract"]) < 1000][:1000],
        "scifact": [row["text"] for row in abstracts if len(row["text"]) < 1200][:1000],
        "oewn": [row["definition"] for row in synsets if row["lexfile"] not in TOPICAL_GLOSSES],
        "opentrivia": [row["question"] for row in trivia],
        "uner-ewt": [text.text for text in tags["ewt"] if len(text.text) > 20],
        "uner-ewt windows": [text.text for text in tags["ewt-windows-1"]][:1500],
        "btc": [text.text for text in tags["btc"] if len(text.text) > 20],
    }


def unseen_texts(folder: Path) -> dict[str, list[str]]:
    """Texts that are none of the topics, of kinds that the head was never trained on."""
    snli = (folder / "snli" / "snli-dev.tsv").read_text(encoding="utf-8").splitlines()
    return {
        "snli": [data.detokenise(line.split("\t")[1]) for line in snli],
        "stsb": [pair.first for pair in data.read_stsb(folder / "stsb" / "sts-train.csv")],
        "hwu64": data.read_csv_column(folder / "hwu64" / "kfold1-train.csv", "answer_from_user", delimiter=";"),
        "wnut17": [
            text.text
            for text in data.read_columns(folder / "wnut17" / "emerging.dev.conll", token=0, tag=1)
            if len(text.text) > 20
        ],
    }


def first_sentence(text: str) -> str:
    """Up to the first full stop behind a word of at least three letters."""
    for index in range(40, len(text) - 1):
        if text[index] == "." and text[index + 1] == " " and text[index - 3 : index].isalpha():
            return text[: index + 1]
    return text
