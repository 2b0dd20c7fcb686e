"""The tag head: trained on the states of words from the frozen backbone, and asked as the product asks it."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from default_model.common import (
    ENTITY_TYPES,
    LAYERS,
    WARMUP,
    Floats,
    key_of,
    log,
    progress,
    write_whole,
)
from default_model.features import Encoder, WordStates, words_of
from indexer import iob
from indexer.batches import plan_batches
from indexer.heads import ContextualTagHead, initialise
from indexer.precision import native_bf16
from indexer.shapes import CAPITALS, LOWERED, Shape
from indexer.training import metrics
from indexer.training.data import TaggedText
from indexer.training.step import rate_factor
from indexer.words import Words


@dataclass(frozen=True, slots=True)
class TagSettings:
    """How the tag head is trained."""

    width: int = 96
    layers: list[int] = field(default_factory=lambda: [-2, -3])  # that it reads, of `LAYERS`
    dropout: float = 0.4
    epochs: int = 7
    batch_words: int = 4096
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    averaging: float = 0.995  # decay of the moving average of the weights, which is what is kept
    paragraphs: int = 5000  # without annotation, for the second round
    tag_shapes: bool = True
    shape_dropout: float = 0.1  # share of the words whose shape is hidden
    small_letters: float = 0.1  # share of the texts that are seen as if in small letters
    capitals: float = 0.05  # and in capitals
    seed: int = 1


@dataclass(frozen=True, slots=True)
class DevSet:
    """Texts, each with its words, and the states of these."""

    texts: list[TaggedText]
    states: WordStates
    words: list[Words]


@dataclass(frozen=True, slots=True)
class Tagger:
    """A tag head, and which of `LAYERS` it reads."""

    head: ContextualTagHead
    layers: Sequence[int]

    def logits(self, batch: TagBatch, shapes: Tensor) -> Tensor:
        """What it says of the words of a batch, (batch, words, labels)."""
        states = batch.states.chunk(len(LAYERS), dim=2)
        found: Tensor = self.head(
            self.head.project([states[LAYERS.index(layer)] for layer in self.layers]), batch.mask, shapes
        )
        return found


def dev_set(encoder: Encoder, name: str, texts: list[TaggedText], *, exact: bool = True) -> DevSet:
    encodings = encoder.tokenizer.encode_batch([text.text for text in texts])
    words = [words_of(text.text, encoding) for text, encoding in zip(texts, encodings, strict=True)]
    return DevSet(texts, encoder.word_states(name, texts, exact=exact), words)


def cached_tag_head(
    encoder: Encoder,
    name: str,
    train: Sequence[WordStates],
    dev: Mapping[str, DevSet],
    settings: TagSettings,
    known: Any,
    *,
    soft: float = 0.0,
    keep: int | None = None,
) -> tuple[Tagger, dict[str, Any]]:
    """A head from the cache, or trained with `fit_tag_head`. `known`: what else it depends on, for the key."""
    torch.manual_seed(settings.seed)
    head = ContextualTagHead(
        len(settings.layers),
        encoder.width,
        2 * len(ENTITY_TYPES) + 1,
        inner=settings.width,
        dropout=settings.dropout,
        shapes=settings.tag_shapes,
    )
    head.apply(initialise)
    path = encoder.cache / f"tag-head-{name}-{key_of(asdict(settings), known)}.pt"
    if path.is_file():
        saved = torch.load(path, weights_only=True)
        head.load_state_dict(saved["weights"])
        return Tagger(head.eval(), settings.layers), json.loads(saved["report"])
    tagger = Tagger(head, settings.layers)
    report = fit_tag_head(tagger, train, dev, settings, soft=soft, keep=keep)
    weights = {"weights": head.state_dict(), "report": json.dumps(report)}
    write_whole(path, lambda temporary: torch.save(weights, temporary))
    return tagger, report


def fit_tag_head(
    tagger: Tagger,
    train: Sequence[WordStates],
    dev: Mapping[str, DevSet],
    settings: TagSettings,
    *,
    soft: float = 0.0,
    keep: int | None = None,
) -> dict[str, Any]:
    """Train in place. Each epoch sees every text twice: alone, and inside one of its windows.

    `keep`: the epoch that is kept, counted from 1 and the last that is trained; `None` for the best one.
    `soft`: the weight of the cross-entropy to what teachers think, of the words that they were asked about (Hinton et
    al. 2015, "Distilling the Knowledge in a Neural Network", at temperature 1).
    """
    torch.manual_seed(settings.seed)
    generator = random.Random(settings.seed)
    head = tagger.head
    plain, head.dropout = head.dropout, LockedDropout(settings.dropout)  # type: ignore[assignment]
    if head.shapes is not None:
        head.shapes.dropout.p = settings.shape_dropout
    average = {name: value.clone() for name, value in head.state_dict().items()}
    optimizer = torch.optim.AdamW(head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    plans = [tag_batches(train, settings, generator, epoch) for epoch in range(settings.epochs)]
    total, step = sum(len(plan) for plan in plans), 0
    best: tuple[float, int, dict[str, Tensor]] = (-1.0, 0, {})
    history = []
    for epoch, plan in enumerate(plans[:keep]):
        head.train()
        losses = []
        for batch in progress(f"tag head, epoch {epoch + 1}", plan):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * rate_factor(step, total, warmup=WARMUP, decay="cosine")
            found = tag_batch(train, batch)
            shapes = other_case(found.shapes, settings, generator)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=native_bf16(torch.device("cpu"))):
                logits = tagger.logits(found, shapes)
            loss = tag_loss(logits.float().flatten(end_dim=1), found, soft=soft)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            decay = min(settings.averaging, (step + 1) / (step + 10))
            for name, value in head.state_dict().items():
                average[name].lerp_(value, 1 - decay)
            losses.append(loss.item())
            step += 1
        current = {name: value.clone() for name, value in head.state_dict().items()}
        head.load_state_dict(average)
        scores = {
            name: metrics.span_scores([text.spans for text in held.texts], predict_spans(tagger, held))
            for name, held in dev.items()
        }
        f1 = {name: score["micro"].f1 for name, score in scores.items()}
        by_type = {name: {kind: one.f1 for kind, one in score.items()} for name, score in scores.items()}
        history.append({"loss": float(np.mean(losses)), **f1, "by type": by_type})
        log(f"tag head {settings.width}, epoch {epoch + 1}: loss {history[-1]['loss']:.4f}, {f1}")
        chosen = (f1["ewt dev"] + f1["btc dev"]) / 2
        if chosen > best[0] or keep is not None:
            best = (chosen, epoch + 1, {name: value.clone() for name, value in average.items()})
        head.load_state_dict(current)
    head.load_state_dict(best[2])
    head.dropout = plain
    head.eval()
    return {"settings": asdict(settings), "history": history, "epoch": best[1], "best mean F1": best[0]}


def tag_loss(logits: Tensor, batch: TagBatch, *, soft: float) -> Tensor:
    """Mean over words of the cross-entropy to the label, or the weighted mean of this and of that to the teachers.

    `logits` (batch · words, labels). A word with neither a label nor teachers does not count.
    """
    labels = batch.labels.flatten()
    hard = nn.functional.cross_entropy(logits, labels, ignore_index=iob.IGNORED, reduction="none")
    counted = labels != iob.IGNORED
    if batch.soft is None or soft == 0:
        return hard.sum() / counted.sum()
    teachers = batch.soft.flatten(end_dim=1)
    asked = teachers.sum(dim=1) > 0
    to_teachers = -(teachers * logits.log_softmax(dim=1)).sum(dim=1)
    weight = torch.where(asked, torch.where(counted, soft, 1.0), 0.0)
    return ((1 - weight) * hard + weight * to_teachers).sum() / (counted | asked).sum()


class LockedDropout(nn.Module):
    """Dropout with one mask for all words of a text (Gal and Ghahramani 2016), which is also cheaper to draw."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, states: Tensor) -> Tensor:
        if not self.training:
            return states
        mask = torch.rand(states.shape[0], 1, states.shape[2]) >= self.share
        return states * (mask.to(states.dtype) / (1 - self.share))


def tag_batches(
    train: Sequence[WordStates], settings: TagSettings, generator: random.Random, epoch: int
) -> list[list[tuple[int, int]]]:
    """Batches of (set, text) of one epoch, of texts of about the same length, in random order."""
    chosen = (0, 1, 2, *range(3 + epoch % 2, 9, 2), *range(9, len(train)))
    lengths = {number: train[number].lengths() for number in chosen}
    texts = [(number, row) for number in chosen for row, length in enumerate(lengths[number]) if length]
    generator.shuffle(texts)
    batches = []
    for start in range(0, len(texts), 4000):
        part = texts[start : start + 4000]
        plan = plan_batches([lengths[number][row] for number, row in part], max_tokens=settings.batch_words)
        batches += [[part[index] for index in batch] for batch in plan]
    generator.shuffle(batches)
    return batches


@dataclass(frozen=True, slots=True)
class TagBatch:
    """`states` fp32 (batch, words, 1536); `mask`, `shapes` and `labels` int64 (batch, words); `soft` fp32 (batch,
    words, labels), `None` where no set has teachers."""

    states: Tensor
    mask: Tensor
    shapes: Tensor
    labels: Tensor
    soft: Tensor | None


def tag_batch(sets: Sequence[WordStates], batch: Sequence[tuple[int, int]]) -> TagBatch:
    """The texts of a batch of (set, text), padded."""
    bounds = [(number, sets[number].starts[row], sets[number].starts[row + 1]) for number, row in batch]
    longest = max(1, *(int(end - start) for _, start, end in bounds))
    states = np.zeros((len(batch), longest, sets[0].states.shape[1]), dtype=np.float32)
    labels = np.full((len(batch), longest), iob.IGNORED, dtype=np.int64)
    mask = np.zeros((len(batch), longest), dtype=np.int64)
    shapes = np.full((len(batch), longest), int(Shape.NONE), dtype=np.int64)
    soft = np.zeros((len(batch), longest, 2 * len(ENTITY_TYPES) + 1), dtype=np.float32)
    for row, (number, start, end) in enumerate(bounds):
        states[row, : end - start] = sets[number].states[start:end]
        labels[row, : end - start] = sets[number].labels[start:end]
        shapes[row, : end - start] = sets[number].shapes[start:end]
        mask[row, : end - start] = 1
        if (teachers := sets[number].soft) is not None:
            soft[row, : end - start] = teachers[start:end]
    tensors = [torch.from_numpy(array) for array in (states, mask, shapes, labels)]
    return TagBatch(*tensors, soft=torch.from_numpy(soft) if any(one.soft is not None for one in sets) else None)


def other_case(shapes: Tensor, settings: TagSettings, generator: random.Random) -> Tensor:
    """A share of the texts as they would look in small letters, and one in capitals: (batch, words)."""
    changed = shapes.clone()
    for row in range(len(shapes)):
        drawn = generator.random()
        if drawn < settings.small_letters:
            changed[row] = torch.from_numpy(LOWERED)[shapes[row]]
        elif drawn < settings.small_letters + settings.capitals:
            changed[row] = torch.from_numpy(CAPITALS)[shapes[row]]
    return changed


def predict_spans(tagger: Tagger, dev: DevSet) -> list[list[tuple[str, int, int]]]:
    """Spans in character offsets, decoded as the product does."""
    return [
        [
            (ENTITY_TYPES[kind], words.offsets[first][0], words.offsets[end - 1][1])
            for kind, first, end in iob.spans_of_labels(labels)
        ]
        for words, (labels, _) in zip(dev.words, predict_words(dev, word_probabilities([tagger], dev)), strict=True)
    ]


def word_probabilities(taggers: Sequence[Tagger], dev: DevSet) -> list[Floats]:
    """The mean of what taggers think of each word of each text, fp32 (words, labels), a row of zeros for one without a
    token; no text may be longer than one window."""
    found: list[Floats] = [np.zeros((0, 0), dtype=np.float32) for _ in dev.texts]
    for tagger in taggers:
        tagger.head.eval()
    for batch in plan_batches(dev.states.lengths(), max_tokens=4096):
        rows = tag_batch([dev.states], [(0, row) for row in batch])
        with torch.inference_mode():
            logits = [tagger.logits(rows, rows.shapes) for tagger in taggers]
            mean = torch.stack(logits).softmax(dim=3).mean(dim=0).numpy()
        for row, number in enumerate(batch):
            known = dev.words[number].known
            found[number] = np.where(known[:, None], mean[row, : len(known)], np.float32(0))
    return found


def predict_words(
    dev: DevSet, probabilities: Sequence[Floats]
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Label of each word of each text, and its probability."""
    found = []
    for words, probability in zip(dev.words, probabilities, strict=True):
        known = words.known
        emissions = np.full((1, *probability.shape), -np.inf, dtype=np.float32)
        emissions[:, :, 0] = 0.0
        with np.errstate(divide="ignore"):
            emissions[0, known] = np.log(probability[known])
        labels = iob.viterbi(emissions, np.array([len(known)]))[0]
        found.append((labels, np.exp(emissions[0, np.arange(len(known)), labels])))
    return found
