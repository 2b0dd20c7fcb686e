"""The class head: trained with outlier exposure, calibrated, with the threshold below which it abstains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

from default_model.class_sets import TOPICS, class_sets
from default_model.common import LAYERS, WARMUP, Floats, key_of, write_whole
from default_model.features import Encoder
from indexer.checkpoint import Loaded
from indexer.heads import PooledClassHead
from indexer.training import metrics
from indexer.training.calibration import fit_temperature
from indexer.training.step import rate_factor


@dataclass(frozen=True, slots=True)
class ClassSettings:
    """How the class head is trained."""

    width: int = 128
    dropout: float = 0.3
    steps: int = 1500
    batch: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    exposure: float = 0.5  # weight of the outliers' loss (Hendrycks et al. 2019 use 0.5)
    abstention: float = 0.99  # share of the held-out texts of every other kind that the head abstains on
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Classifier:
    """A class head with its calibration."""

    head: PooledClassHead
    temperature: float
    threshold: float


def train_class_head(encoder: Encoder, folder: Path, settings: ClassSettings) -> tuple[Classifier, dict[str, Any]]:
    """Head with outlier exposure, its temperature, and the threshold below which it abstains."""
    sets = class_sets(folder)
    inside = encoder.features("dbpedia-train", [row.text for row in sets.train])
    held = encoder.features("dbpedia-held-out", [row.text for row in sets.held_out])
    gold = np.array([row.label for row in sets.held_out])
    exposed = [encoder.features(f"{name}-exposed", texts) for name, texts in sets.exposed.items()]
    targets = torch.tensor([row.label for row in sets.train])
    torch.manual_seed(settings.seed)
    head = PooledClassHead(encoder.width * len(LAYERS), len(TOPICS), inner=settings.width, dropout=settings.dropout)
    texts = [[asdict(row) for row in sets.train], sets.exposed]
    path = encoder.cache / f"class-head-{key_of(asdict(settings), texts, encoder.loaded.fingerprint)}.pt"
    if path.is_file():
        head.load_state_dict(torch.load(path, weights_only=True))
    else:
        fit_class_head(head, inside, targets, np.concatenate(exposed), settings)
        write_whole(path, lambda temporary: torch.save(head.state_dict(), temporary))
    head.eval()

    logits = class_logits(head, held)
    temperature = fit_temperature(logits.numpy(), gold)
    before, after = logits.softmax(1).numpy(), (logits / temperature).softmax(1).numpy()
    right = after.argmax(1) == gold
    measured = {
        name: (class_logits(head, encoder.features(name, texts)) / temperature).softmax(1).amax(1).numpy()
        for name, texts in sets.measured.items()
    }
    threshold = choose_threshold([best for name, best in measured.items() if name.endswith("(held out)")], settings)
    report = {
        "settings": asdict(settings),
        "temperature": temperature,
        "threshold": threshold,
        "held-out accuracy": metrics.accuracy(gold, after.argmax(1)),
        "held-out abstention": float((after.max(1) < threshold).mean()),
        "ECE before": metrics.expected_calibration_error(before.max(1), right),
        "ECE after": metrics.expected_calibration_error(after.max(1), right),
        "trade-off": {
            str(value): {
                "topics": float((after.max(1) < value).mean()),
                **{name: float((best < value).mean()) for name, best in measured.items()},
            }
            for value in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
        },
    }
    return Classifier(head, temperature, threshold), report


def keep_class_head(loaded: Loaded) -> tuple[Classifier, dict[str, Any]]:
    """That of a model that this script has written, as it is."""
    head, config = loaded.model.class_head, loaded.model.config
    if not isinstance(head, PooledClassHead) or config.class_labels != TOPICS:
        raise click.ClickException(f"{loaded.name} has no class head for the {len(TOPICS)} topics")
    return Classifier(head, config.class_temperature, config.class_threshold), {"kept": loaded.heads_fingerprint}


def choose_threshold(outliers: Sequence[Floats], settings: ClassSettings) -> float:
    """The smallest threshold, in steps of 0.01, with the wanted abstention on every kind of outlier."""
    for hundredths in range(30, 100):
        if all((best < hundredths / 100).mean() >= settings.abstention for best in outliers):
            return hundredths / 100
    raise click.ClickException("no threshold makes the class head abstain on what is none of its topics")


def class_logits(head: PooledClassHead, means: Floats) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = head(torch.from_numpy(means))
    return logits


def fit_class_head(
    head: PooledClassHead, inside: Floats, targets: Tensor, outside: Floats, settings: ClassSettings
) -> None:
    """Cross-entropy on the topics plus, weighted, that to uniform on the outliers (Hendrycks et al. 2019).

    *Shapes:* `inside` and `outside` (n, 4, 384), `targets` (n,). Trained in place, on standardised features;
    the standardisation is then folded into the first layer.
    """
    features = torch.from_numpy(np.concatenate([inside, outside]))
    mean, scale = features.mean(0), features.std(0)
    scale = torch.where(scale > 1e-6, scale, 1.0)  # some of the backbone's dimensions are always the same
    x, z = (torch.from_numpy(inside) - mean) / scale, (torch.from_numpy(outside) - mean) / scale
    head.train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate_factor(step, settings.steps, warmup=WARMUP, decay="cosine")
        rows, others = torch.randint(len(x), (settings.batch,)), torch.randint(len(z), (settings.batch,))
        logits = head(torch.cat([x[rows], z[others]]))
        loss = nn.functional.cross_entropy(logits[: settings.batch], targets[rows])
        loss = loss - settings.exposure * logits[settings.batch :].log_softmax(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        head.hidden.weight.div_(scale.flatten())
        head.hidden.bias.sub_(head.hidden.weight @ mean.flatten())
