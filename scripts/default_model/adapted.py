"""The adapted backbone: trained on all tasks at once, and its update scaled so that no retrieval set loses by it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from default_model.common import log
from default_model.features import Encoder
from default_model.layer_weights import choose_layer_weights, floors_of, similarity_sets
from default_model.pairs import write_pairs
from indexer.adapter import Adapter, read_peft, split_adapter
from indexer.checkpoint import WEIGHTS, Loaded, load_checkpoint, with_adapter
from indexer.folders import read_weights
from indexer.sources import MINILM
from indexer.training.loop import train
from indexer.training.settings import read_config

CONFIG = Path(__file__).resolve().parents[2] / "docs" / "training" / "default-backbone.toml"
STRENGTHS = (1.0, 0.75, 0.5, 0.25)


@dataclass(frozen=True, slots=True)
class Adapted:
    """A backbone with its adapter merged in, `None` where the untouched one is best, and the weights of its layers."""

    backbone: Loaded
    adapter: Adapter | None
    weights: list[float]
    report: dict[str, Any]


def train_adapter(data: Path, cache: Path) -> Path:
    """The folder of the adapter, in peft's form; a run that was stopped goes on."""
    pairs = cache / "pairs"
    if not (pairs / "acl.jsonl").is_file():
        write_pairs(data, pairs)
    os.environ["DATA"] = str(data.resolve())
    output = cache / "backbone"
    train(read_config(CONFIG, root=pairs, output=output))
    return output / "adapter-1"


def choose_strength(backbone: Loaded, folder: Path, data: Path, cache: Path) -> Adapted:
    """The strength of the adapter, and the layer weights with it, that gain most where no set loses.

    The floor on every set is the untouched backbone's last layer alone. With an adapter every set must be above it;
    where no strength achieves that, there is no adapter.
    """
    sets = similarity_sets(Encoder(backbone, cache), data)
    floors = floors_of(sets)
    weights, best_gain, scores = choose_layer_weights(sets, floors)
    tried: dict[str, Any] = {"0": {"gain": best_gain, "layer_weights": weights, "scores": scores}}
    chosen, best, best_adapter, best_weights = "0", backbone, None, weights
    whole = read_peft(folder)
    for strength in STRENGTHS:
        adapter = whole.scaled(strength)
        merged = with_adapter(backbone, adapter, source=MINILM)
        own = similarity_sets(Encoder(merged, cache), data)
        weights, gain, scores = choose_layer_weights(own, floors, tolerance=0.0)
        tried[str(strength)] = {"gain": gain, "layer_weights": weights, "scores": scores}
        log(f"strength {strength}: gain {gain:+.4f} with weights {weights}")
        for name, row in scores.items():
            log(f"  {name:32} floor {floors[name]:.4f} " + " ".join(f" {kind} {row[kind]:.4f}" for kind in row))
        if gain > best_gain:
            chosen, best, best_adapter, best_weights, best_gain = str(strength), merged, adapter, weights, gain
        elif best_adapter is not None:
            break  # less of it is worse
    return Adapted(best, best_adapter, best_weights, {"floors": floors, "chosen": chosen, "tried": tried})


def keep_update(folder: Path) -> Adapted:
    """The backbone, update and layer weights of a model that this script has written, as they are."""
    loaded = load_checkpoint(folder)
    config = loaded.model.config
    adapter = split_adapter(read_weights(folder / WEIGHTS), config, place=str(folder))
    return Adapted(loaded, adapter, config.weights, {"kept": loaded.fingerprint})
