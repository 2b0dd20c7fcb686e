"""The tag head: trained on token states of the frozen backbone, and asked as the product asks it."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from default_model.common import (
    ENTITY_TYPES,
    LAYERS,
    WARMUP,
    key_of,
    log,
    progress,
    write_whole,
)
from default_model.features import Encoder, TokenStates
from indexer import iob
from indexer.batches import plan_batches
from indexer.heads import ContextualTagHead
from indexer.precision import native_bf16
from indexer.shapes import CAPITALS, LOWERED, Shape
from indexer.training import metrics
from indexer.training.data import TaggedText
from indexer.training.step import rate_factor


@dataclass(frozen=True, slots=True)
class TagSettings:
    """How the tag head is trained."""

    width: int = 192
    dropout: float = 0.4
    epochs: int = 7
    batch_tokens: int = 6144
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
    """Texts with their token states; `words` and `first` are the words of each and their first tokens."""

    texts: list[TaggedText]
    states: TokenStates
    words: list[iob.Offsets]
    first: list[npt.NDArray[np.int64]]


def dev_set(encoder: Encoder, name: str, texts: list[TaggedText], *, exact: bool = True) -> DevSet:
    words = [iob.split_words(text.text) for text in texts]
    encodings = encoder.tokenizer.encode_batch([text.text for text in texts])
    first = [
        iob.first_tokens(cut, np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2))
        for cut, encoding in zip(words, encodings, strict=True)
    ]
    return DevSet(texts, encoder.token_states(name, texts, exact=exact), words, first)


def cached_tag_head(
    encoder: Encoder,
    name: str,
    train: Sequence[TokenStates],
    dev: Mapping[str, DevSet],
    settings: TagSettings,
    known: Any,
) -> tuple[ContextualTagHead, dict[str, Any]]:
    torch.manual_seed(settings.seed)
    head = ContextualTagHead(
        encoder.width * len(LAYERS),
        2 * len(ENTITY_TYPES) + 1,
        inner=settings.width,
        dropout=settings.dropout,
        shapes=settings.tag_shapes,
    )
    path = encoder.cache / f"tag-head-{name}-{key_of(asdict(settings), known)}.pt"
    if path.is_file():
        saved = torch.load(path, weights_only=True)
        head.load_state_dict(saved["weights"])
        return head.eval(), json.loads(saved["report"])
    report = fit_tag_head(head, train, dev, settings)
    weights = {"weights": head.state_dict(), "report": json.dumps(report)}
    write_whole(path, lambda temporary: torch.save(weights, temporary))
    return head, report


def fit_tag_head(
    head: ContextualTagHead,
    train: Sequence[TokenStates],
    dev: Mapping[str, DevSet],
    settings: TagSettings,
) -> dict[str, Any]:
    """Train in place. Each epoch sees every text twice: alone, and inside one of its windows."""
    torch.manual_seed(settings.seed)
    generator = random.Random(settings.seed)
    plain, head.dropout = head.dropout, LockedDropout(settings.dropout)  # type: ignore[assignment]
    if head.shapes is not None:
        head.shapes.dropout.p = settings.shape_dropout
    average = {name: value.clone() for name, value in head.state_dict().items()}
    optimizer = torch.optim.AdamW(head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    plans = [tag_batches(train, settings, generator, epoch) for epoch in range(settings.epochs)]
    total, step = sum(len(plan) for plan in plans), 0
    best: tuple[float, dict[str, Tensor]] = (-1.0, {})
    history = []
    for epoch, plan in enumerate(plans):
        head.train()
        losses = []
        for batch in progress(f"tag head, epoch {epoch + 1}", plan):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * rate_factor(step, total, warmup=WARMUP, decay="cosine")
            found = tag_batch(train, batch)
            shapes = other_case(found.shapes, settings, generator)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=native_bf16(torch.device("cpu"))):
                logits = head(found.states, found.mask, shapes)
            loss = nn.functional.cross_entropy(
                logits.float().flatten(end_dim=1), found.labels.flatten(), ignore_index=iob.IGNORED
            )
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
            name: metrics.span_scores([text.spans for text in held.texts], predict_spans(head, held))
            for name, held in dev.items()
        }
        f1 = {name: score["micro"].f1 for name, score in scores.items()}
        by_type = {name: {kind: one.f1 for kind, one in score.items()} for name, score in scores.items()}
        history.append({"loss": float(np.mean(losses)), **f1, "by type": by_type})
        log(f"tag head {settings.width}, epoch {epoch + 1}: loss {history[-1]['loss']:.4f}, {f1}")
        chosen = (f1["ewt dev"] + f1["btc dev"]) / 2
        if chosen > best[0]:
            best = (chosen, {name: value.clone() for name, value in average.items()})
        head.load_state_dict(current)
    head.load_state_dict(best[1])
    head.dropout = plain
    head.eval()
    return {"settings": asdict(settings), "history": history, "best mean F1": best[0]}


class LockedDropout(nn.Module):
    """Dropout with one mask for all tokens of a text (Gal and Ghahramani 2016), which is also cheaper to draw."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, states: Tensor) -> Tensor:
        if not self.training:
            return states
        mask = torch.rand(states.shape[0], 1, states.shape[2]) >= self.share
        return states * (mask.to(states.dtype) / (1 - self.share))


def tag_batches(
    train: Sequence[TokenStates], settings: TagSettings, generator: random.Random, epoch: int
) -> list[list[tuple[int, int]]]:
    """Batches of (set, text) of one epoch, of texts of about the same length, in random order."""
    chosen = (0, 1, 2, *range(3 + epoch % 2, 9, 2), *range(9, len(train)))
    texts = [(number, row) for number in chosen for row in range(len(train[number].starts) - 1)]
    generator.shuffle(texts)
    lengths = {number: train[number].lengths() for number in chosen}
    batches = []
    for start in range(0, len(texts), 4000):
        part = texts[start : start + 4000]
        plan = plan_batches([lengths[number][row] for number, row in part], max_tokens=settings.batch_tokens)
        batches += [[part[index] for index in batch] for batch in plan]
    generator.shuffle(batches)
    return batches


@dataclass(frozen=True, slots=True)
class TagBatch:
    """`states` fp32 (batch, seq, 1536); `mask`, `shapes` and `labels` int64 (batch, seq)."""

    states: Tensor
    mask: Tensor
    shapes: Tensor
    labels: Tensor


def tag_batch(sets: Sequence[TokenStates], batch: Sequence[tuple[int, int]]) -> TagBatch:
    """The texts of a batch of (set, text), padded."""
    bounds = [(number, sets[number].starts[row], sets[number].starts[row + 1]) for number, row in batch]
    longest = max(int(end - start) for _, start, end in bounds)
    states = np.zeros((len(batch), longest, sets[0].states.shape[1]), dtype=np.float32)
    labels = np.full((len(batch), longest), iob.IGNORED, dtype=np.int64)
    mask = np.zeros((len(batch), longest), dtype=np.int64)
    shapes = np.full((len(batch), longest), int(Shape.NONE), dtype=np.int64)
    for row, (number, start, end) in enumerate(bounds):
        states[row, : end - start] = sets[number].states[start:end]
        labels[row, : end - start] = sets[number].labels[start:end]
        shapes[row, : end - start] = sets[number].shapes[start:end]
        mask[row, : end - start] = 1
    return TagBatch(
        torch.from_numpy(states), torch.from_numpy(mask), torch.from_numpy(shapes), torch.from_numpy(labels)
    )


def other_case(shapes: Tensor, settings: TagSettings, generator: random.Random) -> Tensor:
    """A share of the texts as they would look in small letters, and one in capitals: (batch, seq)."""
    changed = shapes.clone()
    for row in range(len(shapes)):
        drawn = generator.random()
        if drawn < settings.small_letters:
            changed[row] = torch.from_numpy(LOWERED)[shapes[row]]
        elif drawn < settings.small_letters + settings.capitals:
            changed[row] = torch.from_numpy(CAPITALS)[shapes[row]]
    return changed


def predict_spans(head: ContextualTagHead, dev: DevSet) -> list[list[tuple[str, int, int]]]:
    """Spans in character offsets, decoded as the product does."""
    return [
        [
            (ENTITY_TYPES[kind], int(words[first, 0]), int(words[end - 1, 1]))
            for kind, first, end in iob.spans_of_labels(labels)
        ]
        for words, (labels, _) in zip(dev.words, predict_words(head, dev), strict=True)
    ]


def predict_words(head: ContextualTagHead, dev: DevSet) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Label of each word of each text, and its probability; no text may be longer than one window."""
    head.eval()
    empty = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
    found = [empty for _ in dev.texts]
    for batch in plan_batches(dev.states.lengths(), max_tokens=4096):
        rows = tag_batch([dev.states], [(0, row) for row in batch])
        with torch.inference_mode():
            log_probs = iob.log_softmax(head(rows.states, rows.mask, rows.shapes).numpy())
        for row, number in enumerate(batch):
            words, first = dev.words[number], dev.first[number]
            emissions = np.full((1, len(words), log_probs.shape[2]), -np.inf, dtype=np.float32)
            emissions[:, :, 0] = 0.0
            emissions[0, first >= 0] = log_probs[row, first[first >= 0]]
            labels = iob.viterbi(emissions, np.array([len(words)]))[0]
            found[number] = labels, np.exp(emissions[0, np.arange(len(words)), labels])
    return found
