"""The two rounds of the tag head: teachers on annotated texts, and a student on what they have labelled as well."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from default_model.classes import Classifier
from default_model.common import LAYERS, key_of
from default_model.features import Encoder
from default_model.self_labels import SecondRound, self_label, unlabelled_texts
from default_model.tag_head import TagSettings, cached_tag_head, dev_set
from default_model.tag_sets import tag_sets
from indexer.heads import ContextualTagHead
from indexer.training.data import TaggedText


def train_tag_head(
    encoder: Encoder, folder: Path, settings: TagSettings, second: SecondRound, classifier: Classifier
) -> tuple[ContextualTagHead, dict[str, Any]]:
    """Two rounds: on the annotated texts, then on those and on texts that the heads of the first round have labelled.

    Of each head, the epoch with the best mean F1 on the dev sets of EWT and BTC is kept. The head of the second round
    is the one that was measured; the one that is returned was trained once more, up to the same epoch, on the dev sets
    as well.
    """
    sets = tag_sets(folder)
    train = [encoder.word_states(name, texts, exact=False) for name, texts in sets.train.items()]
    dev = {name: dev_set(encoder, name.replace(" ", "-"), texts) for name, texts in sets.dev.items()}
    known = [[name, key_of([asdict(text) for text in texts])] for name, texts in (sets.train | sets.dev).items()]
    known += [[encoder.loaded.fingerprint, found.digest()] for found in train]
    teachers, reports = [], []
    for number in range(second.teachers):
        wide = replace(settings, width=second.width, layers=LAYERS, seed=settings.seed + number)
        teacher, report = cached_tag_head(encoder, "teacher", train, dev, wide, known)
        teachers.append(teacher)
        reports.append(report)
    paragraphs = unlabelled_texts(folder, settings.paragraphs, second)
    unlabelled = dev_set(encoder, "unlabelled", [TaggedText(row.text) for row in paragraphs], exact=False)
    means = encoder.features("unlabelled", [row.text for row in paragraphs])
    labelled = self_label(teachers, classifier, paragraphs, unlabelled, means)
    known.append(["unlabelled", labelled.digest(), second.soft])
    _, found = cached_tag_head(encoder, "student", [*train, labelled], dev, settings, known, soft=second.soft)
    rest = [encoder.word_states(name, texts, exact=False) for name, texts in sets.rest.items()]
    known += [[name, key_of([asdict(text) for text in texts])] for name, texts in sets.rest.items()]
    known.append(["epochs", found["epoch"]])
    last, _ = cached_tag_head(
        encoder, "last", [*train, labelled, *rest], dev, settings, known, soft=second.soft, keep=found["epoch"]
    )
    return last.head, {"teachers": reports, "second round": asdict(second), **found}
