"""The texts with entities: to train on, as sentences and as windows of several, and to measure on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from indexer.training import data
from indexer.training.data import TaggedText

WNUT_TYPES = {"person": "PER", "location": "LOC", "corporation": "ORG", "group": "ORG"}


@dataclass(frozen=True, slots=True)
class TagSets:
    """Texts to train on, by name, and texts to measure on; `rest`: the latter as they are trained on in the end."""

    train: dict[str, list[TaggedText]]
    dev: dict[str, list[TaggedText]]
    rest: dict[str, list[TaggedText]]


def tag_sets(folder: Path) -> TagSets:
    ewt, btc, wnut = folder / "uner-ewt", folder / "btc", folder / "wnut17"
    single = {
        "ewt": data.read_columns(ewt / "en_ewt-ud-train.v0-normalised.iob2", token=1, tag=2),
        "btc": data.read_columns(btc / "btc.train", token=0, tag=1),
        # BTC tags "@name" as PER or ORG, WNUT-17 as nothing: a model cannot learn both.
        "wnut": data.read_columns(wnut / "wnut17train.conll", token=0, tag=1, types=WNUT_TYPES, drop_handles=True),
    }
    train = dict(single)
    for name, texts in single.items():
        for seed in (1, 2):
            train[f"{name}-windows-{seed}"] = data.join_windows(texts, seed=seed)
    wnut_dev = wnut / "emerging.dev.conll"
    dev = {
        "ewt dev": data.read_columns(ewt / "en_ewt-ud-dev.iob2", token=1, tag=2),
        "btc dev": data.read_columns(btc / "btc.dev", token=0, tag=1),
        "wnut dev": data.read_columns(wnut_dev, token=0, tag=1, types=WNUT_TYPES),
    }
    rest = {
        "ewt-dev": dev["ewt dev"],
        "btc-dev": dev["btc dev"],
        "wnut-dev": data.read_columns(wnut_dev, token=0, tag=1, types=WNUT_TYPES, drop_handles=True),
    }
    rest |= {f"{name}-windows": data.join_windows(texts, seed=1) for name, texts in rest.items()}
    return TagSets(train, dev, rest)
