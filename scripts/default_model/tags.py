"""The two rounds of the tag head: a teacher on annotated texts, and a student on what it has labelled as well."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from default_model.classes import Classifier
from default_model.common import key_of
from default_model.features import Encoder
from default_model.self_labels import self_label, wiki_paragraphs
from default_model.tag_head import TagSettings, cached_tag_head, dev_set
from default_model.tag_sets import tag_sets
from indexer.heads import ContextualTagHead
from indexer.training.data import TaggedText


def train_tag_head(
    encoder: Encoder, folder: Path, settings: TagSettings, classifier: Classifier
) -> tuple[ContextualTagHead, dict[str, Any]]:
    """Two rounds: on the annotated texts, then on those and on paragraphs that the first head has labelled.

    Of each round, the head with the best mean F1 on the dev sets of EWT and BTC over the epochs is kept.
    """
    sets = tag_sets(folder)
    train = [encoder.token_states(name, texts, exact=False) for name, texts in sets.train.items()]
    dev = {name: dev_set(encoder, name.replace(" ", "-"), texts) for name, texts in sets.dev.items()}
    known = [[name, key_of([asdict(text) for text in texts])] for name, texts in (sets.train | sets.dev).items()]
    known += [[encoder.loaded.fingerprint, found.digest()] for found in train]
    teacher, report = cached_tag_head(encoder, "teacher", train, dev, settings, known)
    if settings.paragraphs == 0:
        return teacher, report
    paragraphs = wiki_paragraphs(folder, settings.paragraphs)
    unlabelled = dev_set(encoder, "wiki", [TaggedText(row.text) for row in paragraphs], exact=False)
    labelled = self_label(teacher, classifier, paragraphs, unlabelled)
    known.append(["wiki", labelled.digest()])
    head, second = cached_tag_head(encoder, "student", [*train, labelled], dev, settings, known)
    return head, {"teacher": report, **second}
