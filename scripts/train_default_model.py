"""Train the default model: layer weights, tag head and class head on a frozen all-MiniLM-L6-v2.

    python scripts/train_default_model.py --data DATA --cache CACHE --output indexer/models/default

`DATA` holds the data sets that MODEL_CARD.md names, one folder each. Every stage leaves its result in `CACHE`,
under a name made from everything that it depends on, so that a run that was stopped goes on where it was.
About half an hour on two cores.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from indexer import iob
from indexer.batches import plan_batches
from indexer.checkpoint import Loaded, attach, load_checkpoint, save_checkpoint
from indexer.config import TagdexConfig
from indexer.encoder import concatenate_layers, pool_layers
from indexer.heads import ContextualTagHead, MultiTaskModel, PooledClassHead
from indexer.model import TextModel
from indexer.passages import split_passages
from indexer.sources import MINILM
from indexer.training import data, metrics
from indexer.training.data import LabelledText, TaggedText

ENTITY_TYPES = ["PER", "ORG", "LOC"]
WNUT_TYPES = {"person": "PER", "location": "LOC", "corporation": "ORG", "group": "ORG"}
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
LAYERS = [-1, -2, -3, -4]
MAX_LENGTH = 256
TOLERANCE = 0.002  # what any one set may lose by the layer weights, about the noise of its score

Floats = npt.NDArray[np.float32]


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
    seed: int = 1


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


@click.command()
@click.option("--data", "data_folder", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--width", type=int, default=192, show_default=True, help="Width of the tag head.")
@click.option("--scores", type=click.Path(dir_okay=False, path_type=Path), help="JSON file for all scores.")
def main(data_folder: Path, cache: Path, output: Path, seed: int, width: int, scores: Path | None) -> None:
    """Train the default model."""
    began = time.monotonic()
    cache.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    backbone = load_checkpoint(MINILM.name)
    encoder = Encoder(backbone, cache)

    weights, embedding_scores = choose_layer_weights(encoder, data_folder)
    classifier, class_scores = train_class_head(encoder, data_folder, ClassSettings(seed=seed))
    tag_head, tag_scores = train_tag_head(encoder, data_folder, TagSettings(width=width, seed=seed), classifier)
    assemble(backbone, weights, tag_head, width, classifier, output)
    report = {
        "embedding": embedding_scores,
        "tags": tag_scores,
        "classes": class_scores,
        "product": evaluate_product(output, data_folder, encoder),
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    print_table(report)
    if scores is not None:
        scores.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


# a. Features: the frozen backbone, once over everything


@dataclass(frozen=True, slots=True)
class TokenStates:
    """Token states for the tag head: `states` fp16 (tokens, 4 · 384) of all texts one behind the other,
    `labels` (tokens,), `starts` (texts + 1,) where each text begins."""

    states: npt.NDArray[np.float16]
    labels: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]

    def lengths(self) -> list[int]:
        return [int(length) for length in np.diff(self.starts)]


class Encoder:
    """The frozen backbone with a cache."""

    def __init__(self, loaded: Loaded, cache: Path) -> None:
        self.loaded = loaded
        self.cache = cache
        self.backbone = loaded.model.backbone
        self.tokenizer = loaded.tokenizer
        self.half: nn.Module | None = None

    def features(self, name: str, texts: Sequence[str]) -> Floats:
        """Layer means, fp32 (texts, 4, 384), over all tokens of all windows, as the product pools them."""
        path = self.cache / f"features-{name}-{key_of(list(texts))}.npz"
        if path.is_file():
            with np.load(path) as saved:
                return np.asarray(saved["means"], dtype=np.float32)
        windows: list[tuple[int, list[int]]] = []
        for number, encoding in enumerate(self.tokenizer.encode_batch(list(texts))):
            if len(encoding.ids) <= MAX_LENGTH:
                windows.append((number, encoding.ids))
                continue
            pieces = split_passages(
                texts[number], tokens=len(encoding.ids), max_tokens=MAX_LENGTH - 2, count=self._count
            )
            windows += [(number, self.tokenizer.encode(texts[number][a:b]).ids) for a, b in pieces]
        sums = np.zeros((len(texts), len(LAYERS), 384), dtype=np.float64)
        tokens = np.zeros(len(texts))
        for batch in progress(name, plan_batches([len(ids) for _, ids in windows], max_tokens=1024)):
            ids, mask = pad([windows[index][1] for index in batch])
            with torch.inference_mode():
                states = self.backbone(
                    input_ids=ids, attention_mask=mask, output_hidden_states=sorted(LAYERS)
                ).hidden_states
                pooled = pool_layers([states[layer] for layer in LAYERS], mask).numpy()
            for row, index in enumerate(batch):
                number, own = windows[index]
                sums[number] += len(own) * pooled[row]
                tokens[number] += len(own)
        means: Floats = (sums / tokens[:, None, None]).astype(np.float32)
        write_whole(path, lambda temporary: np.savez(temporary, means=means))
        return means

    def token_states(self, name: str, texts: Sequence[TaggedText], *, exact: bool) -> TokenStates:
        """Token states and labels; texts longer than a window are left out. `exact`: fp32, else bfloat16."""
        stem = f"states-{name}-{key_of([asdict(text) for text in texts], exact)}"
        paths = [self.cache / f"{stem}-{part}.npy" for part in ("starts", "labels", "states")]
        if not paths[2].is_file():
            self._compute_states(name, texts, paths, exact=exact)
        starts, labels = np.load(paths[0]), np.load(paths[1])
        return TokenStates(np.load(paths[2], mmap_mode="r"), labels, starts)

    def _compute_states(self, name: str, texts: Sequence[TaggedText], paths: Sequence[Path], *, exact: bool) -> None:
        if not exact and self.half is None:
            self.half = load_checkpoint(MINILM.name).model.backbone.to(torch.bfloat16)
        backbone = self.backbone if exact else self.half
        encoded = [encoding.ids for encoding in self.tokenizer.encode_batch([text.text for text in texts])]
        offsets = [encoding.offsets for encoding in self.tokenizer.encode_batch([text.text for text in texts])]
        kept = [index for index, ids in enumerate(encoded) if len(ids) <= MAX_LENGTH]
        starts = np.concatenate([[0], np.cumsum([len(encoded[index]) for index in kept])]).astype(np.int64)
        labels = np.concatenate([token_labels(texts[index], offsets[index]) for index in kept])
        temporary = paths[2].with_suffix(".tmp")
        states = np.lib.format.open_memmap(
            temporary, mode="w+", dtype=np.float16, shape=(int(starts[-1]), len(LAYERS) * 384)
        )
        lengths = [len(encoded[index]) for index in kept]
        for batch in progress(name, plan_batches(lengths, max_tokens=1024 if exact else 4096)):
            ids, mask = pad([encoded[kept[row]] for row in batch])
            with torch.inference_mode():
                hidden = backbone(  # type: ignore[misc]
                    input_ids=ids, attention_mask=mask, output_hidden_states=sorted(LAYERS)
                ).hidden_states
                joined = torch.cat([hidden[layer] for layer in LAYERS], dim=2).to(torch.float16).numpy()
            for row, index in enumerate(batch):
                states[starts[index] : starts[index + 1]] = joined[row, : lengths[index]]
        states.flush()
        np.save(paths[0], starts)
        np.save(paths[1], labels)
        temporary.rename(paths[2])

    def _count(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)


def token_labels(text: TaggedText, offsets: Sequence[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """The label of each token: that of the word it begins, `iob.IGNORED` for the others."""
    words = iob.split_words(text.text)
    spans = [(ENTITY_TYPES.index(kind), start, end) for kind, start, end in text.spans]
    first = iob.first_tokens(words, np.array(offsets, dtype=np.int64).reshape(-1, 2))
    labels = np.full(len(offsets), iob.IGNORED, dtype=np.int64)
    known = np.flatnonzero(first >= 0)
    labels[first[known]] = iob.labels_of_spans(spans, words)[known]
    return labels


def pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and mask, int64 (rows, longest)."""
    ids = torch.zeros((len(rows), max(len(row) for row in rows)), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    return ids, mask


# b. Layer weights


@dataclass(frozen=True, slots=True)
class PairSimilarities:
    """Cosines of each layer for scored pairs: `cosines` (4, pairs), `scores` (pairs,)."""

    cosines: Floats
    scores: Floats

    def score(self, shares: Floats) -> float:
        return metrics.spearman(np.tensordot(shares, self.cosines, axes=1), self.scores)


@dataclass(frozen=True, slots=True)
class QuerySimilarities:
    """Cosines of each layer for queries and documents: `cosines` (4, queries, documents).

    `relevant`: for each query the columns of its relevant documents.
    """

    cosines: Floats
    relevant: list[list[int]]

    def score(self, shares: Floats) -> float:
        """nDCG@10, all grades 1."""
        scores = np.tensordot(shares, self.cosines, axes=1)
        if all(len(columns) == 1 for columns in self.relevant):
            own = scores[np.arange(len(scores)), [columns[0] for columns in self.relevant]]
            ranks = 1 + (scores > own[:, None]).sum(axis=1)
            return float(np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0.0).mean())
        values = []
        for row, columns in zip(scores, self.relevant, strict=True):
            best = np.argsort(-row, kind="stable")[:10]
            values.append(metrics.ndcg([str(column) for column in best], {str(column): 1.0 for column in columns}))
        return float(np.mean(values))


def choose_layer_weights(encoder: Encoder, folder: Path) -> tuple[list[float], dict[str, Any]]:
    """Weights for normalised layers, chosen on the sets in `chosen_on`; the others only check.

    With normalised layers, the cosine of two embeddings is Σ aₗ · cosₗ with shares aₗ = wₗ² / Σ w², so each
    layer's cosines are computed once, and a share vector costs one weighted sum.
    """
    sets = similarity_sets(encoder, folder)
    chosen_on, every = sets.chosen_on, {**sets.chosen_on, **sets.checks}
    floor = np.array([1.0, 0.0, 0.0, 0.0], dtype=np.float32)
    floors = {name: found.score(floor) for name, found in every.items()}

    def gain(shares: Floats) -> float:
        """Mean gain over the last layer alone, if no set loses more than the tolerance."""
        gains = [found.score(shares) - floors[name] for name, found in chosen_on.items()]
        return float(np.mean(gains)) if min(gains) > -TOLERANCE else -1.0

    best, value = floor, 0.0
    for step in (0.05, 0.01):
        centre = best[1:]
        for moves in itertools.product(range(5) if step == 0.05 else range(-4, 5), repeat=3):
            others = (0 if step == 0.05 else centre) + step * np.array(moves)
            if others.min() < -1e-9 or others.sum() > 0.9:
                continue
            shares = np.concatenate([[1 - others.sum()], others.clip(min=0)]).astype(np.float32)
            if (improved := gain(shares)) > value + 1e-6:
                best, value = shares, improved
    weights = [round(float(weight), 4) for weight in np.sqrt(best / best.max())]
    exact = np.array(weights, dtype=np.float32) ** 2
    exact /= exact.sum()
    report: dict[str, Any] = {"layer_weights": weights, "chosen_on": list(chosen_on), "scores": {}}
    equal = np.full(4, 0.25, dtype=np.float32)
    for name, found in every.items():
        report["scores"][name] = {
            "last layer": floors[name],
            "equal": found.score(equal),
            "chosen": found.score(exact),
        }
    return weights, report


Similarities = PairSimilarities | QuerySimilarities


@dataclass(frozen=True, slots=True)
class SimilaritySets:
    """Sets to choose the weights on, and sets that only check them."""

    chosen_on: dict[str, Similarities]
    checks: dict[str, Similarities]


def similarity_sets(encoder: Encoder, folder: Path) -> SimilaritySets:
    generator = random.Random(7)
    papers = [row for row in data.read_jsonl(folder / "acl-anthology" / "acl-2016-2024.jsonl.xz") if row["abstract"]]
    papers = generator.sample(papers, 3000)
    trivia = list(data.read_jsonl(folder / "opentrivia" / "opentrivia.jsonl.xz"))
    trivia = list({row["answer"].lower(): row for row in generator.sample(trivia, 4000)}.values())[:2500]
    synsets = [row for row in data.read_jsonl(folder / "oewn" / "oewn-synsets.jsonl.xz") if row["examples"]]
    synsets = generator.sample(synsets, 2500)
    paragraphs = wiki_pairs(folder, 1500, generator)

    def pairs(name: str, path: Path) -> PairSimilarities:
        rows = data.read_stsb(path)
        first = encoder.features(f"{name}-1", [row.first for row in rows])
        second = encoder.features(f"{name}-2", [row.second for row in rows])
        cosines = np.einsum("nld,nld->ln", unit(first), unit(second))
        return PairSimilarities(cosines, np.array([row.score for row in rows], dtype=np.float32))

    def twins(name: str, queries: Sequence[str], documents: Sequence[str]) -> QuerySimilarities:
        first = encoder.features(f"{name}-queries", queries)
        second = encoder.features(f"{name}-documents", documents)
        return QuerySimilarities(layer_cosines(first, second), [[row] for row in range(len(queries))])

    def titles(name: str, rows: Sequence[Mapping[str, Any]]) -> QuerySimilarities:
        return twins(name, [row["title"] for row in rows], [row["abstract"] for row in rows])

    chosen_on: dict[str, Similarities] = {
        "STS-B train": pairs("stsb-train", folder / "stsb" / "sts-train.csv"),
        "ACL titles": titles("acl-1", papers[:1500]),
        "wiki paragraphs": twins("wiki", [a for a, _ in paragraphs], [b for _, b in paragraphs]),
        "trivia answers": twins("trivia", [row["question"] for row in trivia], [str(row["answer"]) for row in trivia]),
        "OEWN examples": twins("oewn", [row["examples"][0] for row in synsets], [row["definition"] for row in synsets]),
    }
    checks: dict[str, Similarities] = {
        "STS-B dev": pairs("stsb-dev", folder / "stsb" / "sts-dev.csv"),
        "ACL titles held out": titles("acl-2", papers[1500:]),
        "SciFact train": scifact(encoder, folder, generator),
    }
    return SimilaritySets(chosen_on, checks)


def scifact(encoder: Encoder, folder: Path, generator: random.Random) -> QuerySimilarities:
    """All training queries, on the documents that are relevant to one and 1,000 others."""
    found = data.read_beir(folder / "scifact", split="train")
    wanted = {document for relevant in found.relevant.values() for document in relevant}
    others = sorted(found.documents.keys() - wanted)
    names = sorted(wanted) + generator.sample(others, 1000)
    column = {name: index for index, name in enumerate(names)}
    queries = encoder.features("scifact-queries", list(found.queries.values()))
    documents = encoder.features("scifact-documents", [found.documents[name] for name in names])
    relevant = [[column[name] for name in found.relevant[query]] for query in found.queries]
    return QuerySimilarities(layer_cosines(queries, documents), relevant)


def wiki_pairs(folder: Path, count: int, generator: random.Random) -> list[tuple[str, str]]:
    """Two paragraphs each of `count` articles."""
    articles: dict[str, list[str]] = {}
    for row in data.read_jsonl(folder / "wiki-en" / "wiki-paragraphs.jsonl.xz"):
        if len(row["text"]) > 150:
            articles.setdefault(row["title"], []).append(row["text"])
    titles = sorted(title for title, texts in articles.items() if len(texts) > 1)
    return [(articles[title][0], articles[title][1]) for title in generator.sample(titles, count)]


def unit(means: Floats) -> Floats:
    result: Floats = means / np.linalg.norm(means, axis=-1, keepdims=True)
    return result


def layer_cosines(queries: Floats, documents: Floats) -> Floats:
    """(q, 4, d), (n, 4, d) → (4, q, n)."""
    result: Floats = np.einsum("qld,nld->lqn", unit(queries), unit(documents), optimize=True)
    return result


# c. Tag head


@dataclass(frozen=True, slots=True)
class TagSets:
    """Texts to train on, by name, and texts to measure on."""

    train: dict[str, list[TaggedText]]
    dev: dict[str, list[TaggedText]]


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
    dev = {
        "ewt dev": data.read_columns(ewt / "en_ewt-ud-dev.iob2", token=1, tag=2),
        "btc dev": data.read_columns(btc / "btc.dev", token=0, tag=1),
        "wnut dev": data.read_columns(wnut / "emerging.dev.conll", token=0, tag=1, types=WNUT_TYPES),
    }
    return TagSets(train, dev)


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
    teacher, report = cached_tag_head(encoder, "teacher", train, dev, settings, known)
    if settings.paragraphs == 0:
        return teacher, report
    paragraphs = wiki_paragraphs(folder, settings.paragraphs)
    unlabelled = dev_set(encoder, "wiki", [TaggedText(row.text) for row in paragraphs], exact=False)
    labelled = self_label(teacher, classifier, paragraphs, unlabelled)
    known.append(["wiki", hashlib.sha256(labelled.labels.tobytes()).hexdigest()])
    head, second = cached_tag_head(encoder, "student", [*train, labelled], dev, settings, known)
    return head, {"teacher": report, **second}


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
        384 * len(LAYERS), 2 * len(ENTITY_TYPES) + 1, inner=settings.width, dropout=settings.dropout
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
                group["lr"] = settings.learning_rate * learning_rate_factor(step, total)
            states, mask, labels = tag_batch(train, batch)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = head(states, mask)
            loss = nn.functional.cross_entropy(
                logits.float().flatten(end_dim=1), labels.flatten(), ignore_index=iob.IGNORED
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
            name: metrics.span_scores([text.spans for text in found.texts], predict_spans(head, found))
            for name, found in dev.items()
        }
        f1 = {name: score["micro"].f1 for name, score in scores.items()}
        history.append({"loss": float(np.mean(losses)), **f1})
        log(f"tag head {settings.width}, epoch {epoch + 1}: {history[-1]}")
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


def learning_rate_factor(step: int, total: int, *, warmup: float = 0.05) -> float:
    """Linear rise to 1 over the first steps, then half a cosine to 0."""
    done = step / total
    if done < warmup:
        return (done + 1 / total) / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


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


def tag_batch(sets: Sequence[TokenStates], batch: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """States fp32 (batch, seq, 1536), mask and labels int64 (batch, seq)."""
    bounds = [(number, sets[number].starts[row], sets[number].starts[row + 1]) for number, row in batch]
    longest = max(int(end - start) for _, start, end in bounds)
    states = np.zeros((len(batch), longest, sets[0].states.shape[1]), dtype=np.float32)
    labels = np.full((len(batch), longest), iob.IGNORED, dtype=np.int64)
    mask = np.zeros((len(batch), longest), dtype=np.int64)
    for row, (number, start, end) in enumerate(bounds):
        states[row, : end - start] = sets[number].states[start:end]
        labels[row, : end - start] = sets[number].labels[start:end]
        mask[row, : end - start] = 1
    return torch.from_numpy(states), torch.from_numpy(mask), torch.from_numpy(labels)


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
        states, mask, _ = tag_batch([dev.states], [(0, row) for row in batch])
        with torch.inference_mode():
            log_probs = iob.log_softmax(head(states, mask).numpy())
        for row, number in enumerate(batch):
            words, first = dev.words[number], dev.first[number]
            emissions = np.full((1, len(words), log_probs.shape[2]), -np.inf, dtype=np.float32)
            emissions[:, :, 0] = 0.0
            emissions[0, first >= 0] = log_probs[row, first[first >= 0]]
            labels = iob.viterbi(emissions, np.array([len(words)]))[0]
            found[number] = labels, np.exp(emissions[0, np.arange(len(words)), labels])
    return found


# c2. Paragraphs that label themselves: what capital letters and titles tell, and the backbone cannot see


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
    teacher: ContextualTagHead, classifier: Classifier, paragraphs: Sequence[Paragraph], dev: DevSet
) -> TokenStates:
    """The paragraphs' states with labels from the teacher, corrected by capitals and titles."""
    labels = np.full_like(dev.states.labels, iob.IGNORED)
    for number, (found, probability) in enumerate(predict_words(teacher, dev)):
        start, end = dev.states.starts[number : number + 2]
        means = np.asarray(dev.states.states[start:end], dtype=np.float32).mean(0).reshape(1, len(LAYERS), -1)
        scores = (class_logits(classifier.head, means)[0] / classifier.temperature).softmax(0)
        topic = TOPICS[int(scores.argmax())] if paragraphs[number].lead and scores.max() > 0.9 else None
        if paragraphs[number].organisation:
            topic = "Company"
        corrected = correct_labels(paragraphs[number], dev.words[number], found, probability, topic)
        first = dev.first[number]
        labels[start + first[first >= 0]] = corrected[first >= 0]
    return TokenStates(dev.states.states, labels, dev.states.starts)


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
        inside = np.flatnonzero((words[:, 0] >= start) & (words[:, 1] <= stop))
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
        return index >= 0 and index + 1 < len(words) and text[words[index, 1] : words[index + 1, 0]] == " "

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


# d. Class head


@dataclass(frozen=True, slots=True)
class Classifier:
    """A class head with its calibration."""

    head: PooledClassHead
    temperature: float
    threshold: float


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


def train_class_head(encoder: Encoder, folder: Path, settings: ClassSettings) -> tuple[Classifier, dict[str, Any]]:
    """Head with outlier exposure, its temperature, and the threshold below which it abstains."""
    sets = class_sets(folder)
    inside = encoder.features("dbpedia-train", [row.text for row in sets.train])
    held = encoder.features("dbpedia-held-out", [row.text for row in sets.held_out])
    gold = np.array([row.label for row in sets.held_out])
    exposed = [encoder.features(f"{name}-exposed", texts) for name, texts in sets.exposed.items()]
    targets = torch.tensor([row.label for row in sets.train])
    torch.manual_seed(settings.seed)
    head = PooledClassHead(384 * len(LAYERS), len(TOPICS), inner=settings.width, dropout=settings.dropout)
    texts = [[asdict(row) for row in sets.train], sets.exposed]
    path = encoder.cache / f"class-head-{key_of(asdict(settings), texts)}.pt"
    if path.is_file():
        head.load_state_dict(torch.load(path, weights_only=True))
    else:
        fit_class_head(head, inside, targets, np.concatenate(exposed), settings)
        write_whole(path, lambda temporary: torch.save(head.state_dict(), temporary))
    head.eval()

    logits = class_logits(head, held)
    temperature = fit_temperature(logits, torch.from_numpy(gold))
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
            group["lr"] = settings.learning_rate * learning_rate_factor(step, settings.steps)
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


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """The temperature with the smallest cross-entropy (Guo et al. 2017)."""
    candidates = np.exp(np.linspace(np.log(0.2), np.log(5), 321))
    losses = [float(nn.functional.cross_entropy(logits / value, targets)) for value in candidates]
    return round(float(candidates[int(np.argmin(losses))]), 4)


# e. Assemble and evaluate


def assemble(
    backbone: Loaded,
    weights: list[float],
    tag_head: ContextualTagHead,
    width: int,
    classifier: Classifier,
    output: Path,
) -> None:
    """Write the heads and the configuration; the backbone is named, not copied."""
    config = TagdexConfig(
        encoder_config=portable(backbone.model.config.encoder_config),
        pool_layers=LAYERS,
        layer_weights=weights,
        normalize_layers=True,
        tag_layers=LAYERS,
        class_labels=TOPICS,
        class_head="pooled",
        class_head_width=classifier.head.hidden.out_features,
        entity_types=ENTITY_TYPES,
        tag_head="contextual",
        tag_head_width=width,
        max_length=MAX_LENGTH,
        class_temperature=classifier.temperature,
        class_threshold=classifier.threshold,
        backbone_source={"name": MINILM.name, "revision": MINILM.revision, "sha256": MINILM.sha256},
    )
    model = MultiTaskModel(config)
    model.backbone = backbone.model.backbone
    model.class_head, model.tag_head = classifier.head, tag_head
    temporary = output.with_name(output.name + ".new")
    shutil.rmtree(temporary, ignore_errors=True)
    save_checkpoint(attach(model, backbone.tokenizer, name="default"), temporary, backbone=False)
    output.mkdir(parents=True, exist_ok=True)
    for file in temporary.iterdir():  # a model card that stands there stays
        file.replace(output / file.name)
    temporary.rmdir()


def portable(config: dict[str, Any]) -> dict[str, Any]:
    """Without the path that it was loaded from, and what does not describe the architecture."""
    return {name: value for name, value in config.items() if name not in ("_name_or_path", "architectures")}


def evaluate_product(output: Path, folder: Path, encoder: Encoder) -> dict[str, Any]:
    """Everything again through `TextModel`, as a user gets it."""
    model = TextModel.load(output)
    report: dict[str, Any] = {"fingerprint": model.fingerprint, "tags": {}, "abstention": {}}
    for name, texts in tag_sets(folder).dev.items():
        analyses = model.analyse([text.text for text in texts])
        scores = metrics.span_scores(
            [text.spans for text in texts],
            [[(span.type, span.start, span.end) for span in analysis.spans] for analysis in analyses],
        )
        report["tags"][name] = {kind: asdict(score) for kind, score in scores.items()}
    sets = class_sets(folder)
    held_out = model.analyse([row.text for row in sets.held_out])
    answers = [TOPICS.index(found.label.name) if found.label else -1 for found in held_out]
    gold = [row.label for row in sets.held_out]
    answered = [(a, b) for a, b in zip(answers, gold, strict=True) if a >= 0]
    report["DBpedia held out"] = {
        "abstained": answers.count(-1) / len(answers),
        "right, of all": float(np.mean([a == b for a, b in zip(answers, gold, strict=True)])),
        "right, of those answered": float(np.mean([a == b for a, b in answered])),
    }
    for name, outliers in sets.measured.items():
        found = model.analyse(outliers)
        report["abstention"][name] = sum(analysis.label is None for analysis in found) / len(found)
    pairs = data.read_stsb(folder / "stsb" / "sts-dev.csv")
    first, second = (
        model.encode([pair.first for pair in pairs]),
        model.encode([pair.second for pair in pairs]),
    )
    cosines = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    report["STS-B dev"] = metrics.spearman(cosines, np.array([pair.score for pair in pairs]))
    report["embeddings identical"] = embeddings_identical(model, encoder.loaded, [pair.first for pair in pairs])
    return report


def embeddings_identical(model: TextModel, raw: Loaded, texts: Sequence[str]) -> bool:
    """Whether the layer means are bit for bit those of the untouched backbone."""
    means = torch.from_numpy(TextModel(raw, device="cpu").encode(texts).reshape(len(texts), len(LAYERS), -1))
    wanted = concatenate_layers(means, weights=model.config.weights, normalize=True).numpy()
    return bool(np.array_equal(model.encode(texts), wanted))


def print_table(report: Mapping[str, Any]) -> None:
    click.echo(f"layer weights {report['embedding']['layer_weights']}")
    for name, row in report["embedding"]["scores"].items():
        click.echo(f"{name:24}" + "".join(f"  {column} {value:.4f}" for column, value in row.items()))
    product = report["product"]
    for name, scores in product["tags"].items():
        columns = "".join(f"  {kind} {score['f1']:.4f}" for kind, score in scores.items())
        click.echo(f"{name:24}{columns}")
    classes = report["classes"]
    for name in (
        "temperature",
        "threshold",
        "held-out accuracy",
        "held-out abstention",
        "ECE before",
        "ECE after",
    ):
        click.echo(f"{name:24}  {classes[name]:.4f}")
    for name, value in product["DBpedia held out"].items():
        click.echo(f"DBpedia {name:26}  {value:.4f}")
    for name, share in product["abstention"].items():
        click.echo(f"abstains on {name:26}  {share:.4f}")
    click.echo(f"STS-B dev {product['STS-B dev']:.4f}; embeddings identical: {product['embeddings identical']}")
    click.echo(f"{report['minutes']} minutes")


# Small helpers


def key_of(*facts: Any) -> str:
    """Short hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """A file of this name is always complete."""
    temporary = path.with_name("unfinished-" + path.name)
    write(temporary)
    temporary.rename(path)


def progress(name: str, batches: Sequence[Any]) -> Any:
    return tqdm(batches, desc=name, disable=not sys.stderr.isatty(), leave=False)


def log(message: str) -> None:
    click.echo(message, err=True)


if __name__ == "__main__":
    main()
