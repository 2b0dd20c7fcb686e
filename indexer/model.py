"""Texts in, analyses out: passages, embeddings, classes and entities from one forward pass each."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from indexer import iob, products
from indexer.batches import plan_even_batches
from indexer.checkpoint import Loaded, load_checkpoint
from indexer.cores import Workers
from indexer.encoder import concatenate_layers
from indexer.errors import InputError, ModelError
from indexer.fields import several
from indexer.finite import all_finite
from indexer.folders import no_panic
from indexer.passages import split_passages
from indexer.precision import choose
from indexer.records import Analysis, FloatArray, Label, Passage, Span
from indexer.words import WordBatch, Words, cut_words, pad_words

# Halves of a pair, which are no characters and which tokenizers refuse; what replaces one is as long.
_SURROGATES = re.compile("[\ud800-\udfff]")

# Padded tokens of one batch: small on a CPU, where it should stay in the cache of one core, large on a GPU.
BATCH_TOKENS = {"cpu": 512, "cuda": 65_536}


# Texts of several kinds, which show whether a precision will do.
PROBES = ("Hello there!", "A ship at sea, 1815", "naïve 日本語 😀", "a", "x = f(y) + 2", "Ada met Bob in Rome")

# Families whose layers mix in what stands at padding, mask or not: they get batches of one length.
UNMASKED = frozenset({"convbert", "fnet", "nystromformer"})


# Families whose forward pass changes nothing of the model, so that several threads can be in it. Not so BigBird, which
# chooses its attention by the first input that it sees, Funnel and Reformer.
SHAREABLE = frozenset({"albert", "bert", "camembert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta"})


@dataclass(frozen=True, slots=True)
class Window:
    """One passage as the model sees it. `offsets` are the tokens', relative to the passage, prefix at ≤ 0."""

    text: int
    start: int
    end: int
    ids: list[int]
    offsets: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class BatchResult:
    """fp32 `means` (windows, L, width), `class_logits` (windows, classes) or None, spans relative to their window."""

    means: FloatArray
    class_logits: FloatArray | None
    spans: list[list[Span]]


class TextModel:
    """A multi-task model ready for use on one device.

    Safe to share between threads that only read, where its backbone is of one of the families in `SHAREABLE`.
    """

    def __init__(
        self, loaded: Loaded, *, device: str = "auto", batch_tokens: int | None = None, precision: str = "fp32"
    ) -> None:
        """`device`: auto, cpu, cuda or cuda:N. Raises `ModelError` for one that is not there, and `batch_tokens` < 1.

        `precision`: what the backbone computes in; "auto" is bf16 where the device is faster with it and the
        embeddings stay what they are (`precision.choose`), and `self.precision` then says what was chosen.
        """
        if batch_tokens is not None and batch_tokens < 1:
            raise ModelError(f"batch_tokens must be at least 1, got {batch_tokens}")
        self.loaded = loaded
        self.device = choose_device(device)
        self.model = loaded.model.to(self.device).eval()
        products.use_the_faster(self.model)
        self.config = loaded.model.config
        self.tokenizer = loaded.tokenizer
        self.name = loaded.name
        self.fingerprint = loaded.fingerprint
        self.heads_fingerprint = loaded.heads_fingerprint
        self.batch_tokens = batch_tokens or BATCH_TOKENS[self.device.type]
        self._workers = Workers()
        self._special_tokens = int(self.tokenizer.num_special_tokens_to_add(False))
        self._pad_id = int(getattr(self.model.backbone.config, "pad_token_id", None) or 0)
        self._offsets_hold_spaces = _offsets_hold_spaces(self.tokenizer)
        self.precision, self.model = choose(precision, self.model, lambda: self.pad(self.windows(PROBES)))

    @classmethod
    def load(
        cls,
        name: str | Path | None = None,
        *,
        device: str = "auto",
        batch_tokens: int | None = None,
        precision: str = "fp32",
    ) -> TextModel:
        """Load a model by name or folder (`None`: the default model). Raises `ModelError`."""
        return cls(load_checkpoint(name), device=device, batch_tokens=batch_tokens, precision=precision)

    @property
    def dimension(self) -> int:
        """Width of an embedding."""
        return int(self.model.dimension)

    @property
    def class_labels(self) -> tuple[str, ...] | None:
        """What the class head tells apart; `None` without one."""
        return None if self.config.class_labels is None else tuple(self.config.class_labels)

    @property
    def entity_types(self) -> tuple[str, ...] | None:
        """What the tag head finds; `None` without one."""
        return None if self.config.entity_types is None else tuple(self.config.entity_types)

    @property
    def pooled_layers(self) -> tuple[int, ...]:
        """The backbone's hidden states that an embedding is made of, in the order in which it holds them."""
        return tuple(self.config.pooled_layers)

    def tensors(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, int64 (batch, seq), of texts that fit into one window each: a batch to train on.

        Raises `ModelError` for a text that is longer.
        """
        windows = self.windows(texts)
        if len(windows) != len(texts):
            raise ModelError(f"a text is longer than one window of {self.config.max_length} tokens: split it first")
        return self.pad(windows)

    def word_batch(self, texts: Sequence[str]) -> WordBatch:
        """The words of the texts that `tensors` gives, for the tag head."""
        pairs = zip(self.windows(texts), texts, strict=True)
        return self.pad_words([self.words(window, text) for window, text in pairs])

    def encode(self, texts: Iterable[str]) -> FloatArray:
        """Raw embeddings, not normalised: fp32 (texts, dimension), in the order given.

        A text longer than one window is pooled over all tokens of all its windows; nothing is cut off. Raises
        `InputError` for one text in place of several, and for what is no text.
        """
        analyses = self.analyse(texts, tags=False)
        if not analyses:
            return np.zeros((0, self.dimension), dtype=np.float32)
        return np.stack([analysis.pooled for analysis in analyses])

    def similarity(self, first: str, second: str) -> float:
        """Cosine of the embeddings of two texts, in [−1, 1]. Raises `InputError` for what is no text."""
        a, b = self.encode([first, second]).astype(np.float64)
        return float(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1.0, 1.0))

    def analyse(self, texts: Iterable[str], *, tags: bool = True) -> list[Analysis]:
        """Everything the model says about each text, in the order given; class and entities only with `tags`.

        Raises `InputError` for one text in place of several, and for what is no text.
        """
        work = self._analysing(texts, tags=tags, in_steps=False)
        while (analyses := next(work)) is None:
            pass
        return analyses

    def analyse_in_steps(self, texts: Iterable[str], *, tags: bool = True) -> Iterator[list[Analysis] | None]:
        """As `analyse`, giving way between batches: `None` after each step, at last the analyses.

        A step takes as long as one batch of `batch_tokens`; the first also splits the texts.
        """
        return self._analysing(texts, tags=tags, in_steps=True)

    def _analysing(
        self, texts: Iterable[str], *, tags: bool, in_steps: bool
    ) -> Generator[list[Analysis] | None, None, None]:
        """With `in_steps` it gives way after one batch for each core."""
        texts = [_SURROGATES.sub("\ufffd", text) for text in several(texts, "texts", error=InputError)]
        windows = self.windows(texts)
        if not windows:
            yield []
            return
        means = np.empty((len(windows), len(self.pooled_layers), self.model.width), dtype=np.float32)
        logits = np.empty((len(windows), len(self.class_labels or ())), dtype=np.float32)
        spans: list[list[Span]] = [[] for _ in windows]
        left = self._batches(windows)

        def run(batch: Sequence[int]) -> BatchResult:
            return self._run([windows[at] for at in batch], texts, tags=tags)

        while left:
            count = self._cores if in_steps else len(left)
            batches, left = left[:count], left[count:]
            results = self._workers.map(run, batches) if self._shares else map(run, batches)
            for batch, found in zip(batches, results, strict=True):
                means[batch] = found.means
                if found.class_logits is not None:
                    logits[batch] = found.class_logits
                for at, own in zip(batch, found.spans, strict=True):
                    spans[at] = own
            if left:
                yield None
        yield self._combine(windows, means, logits if tags and self.class_labels else None, spans)

    @property
    def _shares(self) -> bool:
        """Whether each core has a batch of its own."""
        return self.device.type == "cpu" and self.model.backbone.config.model_type in SHAREABLE

    @property
    def _cores(self) -> int:
        """How many batches are computed at a time."""
        return self._workers.count if self._shares else 1

    def _batches(self, windows: Sequence[Window]) -> list[list[int]]:
        padding = self.model.backbone.config.model_type not in UNMASKED
        lengths = [len(window.ids) for window in windows]
        return plan_even_batches(lengths, max_tokens=self.batch_tokens, workers=self._cores, padding=padding)

    def part_vectors(self, texts: Sequence[str], parts: Sequence[Sequence[tuple[int, int]]]) -> list[FloatArray]:
        """Embeddings of parts of each text, such as its sentences, from the token states of one pass over the text.

        `parts`: for each text the offsets of its parts. Returns for each text fp32 (parts, dimension): pooled as a text
        is, but over the tokens that begin in the part, without special tokens; zeros for a part without a token.
        """
        texts = [_SURROGATES.sub("\ufffd", text) for text in texts]
        windows = self.windows(texts)
        shape = len(self.config.pooled_layers), self.model.width
        sums = [np.zeros((len(own), *shape), dtype=np.float32) for own in parts]
        counts = [np.zeros(len(own), dtype=np.float32) for own in parts]
        for batch in self._batches(windows):
            with torch.inference_mode():
                states = self.model.token_states(*self.pad([windows[at] for at in batch])).float()
            for row, window in enumerate(windows[at] for at in batch):
                belongs = self._tokens_of_parts(window, texts[window.text], parts[window.text])
                weights = torch.from_numpy(belongs).to(states)
                tokens = states[row, :, : belongs.shape[1]]
                sums[window.text] += torch.einsum("pt,ltw->plw", weights, tokens).cpu().numpy()
                counts[window.text] += belongs.sum(axis=1)
        for own, count in zip(sums, counts, strict=True):
            own /= np.maximum(count, 1.0)[:, None, None]
            assert_finite(torch.from_numpy(own), name=self.name)
        return [self._embedding(own) for own in sums]

    def _tokens_of_parts(self, window: Window, text: str, parts: Sequence[tuple[int, int]]) -> npt.NDArray[np.float32]:
        """1 where a token of the window begins in the part, else 0: (parts, tokens)."""
        offsets = np.array(self.token_offsets(window, text[window.start : window.end]), dtype=np.int64).reshape(-1, 2)
        first, last = offsets[:, 0] + window.start, offsets[:, 1] + window.start
        bounds = np.array(parts, dtype=np.int64).reshape(-1, 2)
        inside = (first >= bounds[:, :1]) & (first < bounds[:, 1:]) & (last > first)
        return inside.astype(np.float32)

    def windows(self, texts: Sequence[str]) -> list[Window]:
        """Tokenise, and split what is longer than one window: each text's windows behind each other, in order."""
        with no_panic(self.name):
            return self._cut(texts)

    def _cut(self, texts: Sequence[str]) -> list[Window]:
        prefix, room = self.config.prefix, self.config.max_length - self._special_tokens
        windows = []
        encodings = self.tokenizer.encode_batch([prefix + text for text in texts])
        for number, (text, encoding) in enumerate(zip(texts, encodings, strict=True)):
            if len(encoding.ids) <= self.config.max_length:
                windows.append(self._window(number, 0, len(text), encoding))
                continue
            pieces = split_passages(
                text,
                tokens=len(encoding.ids),
                max_tokens=room,
                count=lambda piece: self._count(prefix + piece),
            )
            for (start, end), part in zip(
                pieces, self.tokenizer.encode_batch([prefix + text[a:b] for a, b in pieces]), strict=True
            ):
                windows.append(self._window(number, start, end, part))
        return windows

    def _window(self, number: int, start: int, end: int, encoding: object) -> Window:
        # A tokenizer without special tokens gives an empty text no token; it is one of padding then.
        ids: list[int] = encoding.ids or [self._pad_id]  # type: ignore[attr-defined]
        offsets: list[tuple[int, int]] = encoding.offsets or [(0, 0)]  # type: ignore[attr-defined]
        if shift := len(self.config.prefix):
            offsets = [(a - shift, b - shift) for a, b in offsets]
        return Window(text=number, start=start, end=end, ids=ids, offsets=offsets)

    def _count(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _run(self, windows: Sequence[Window], texts: Sequence[str], *, tags: bool) -> BatchResult:
        """One batch through the model."""
        ids, mask = self.pad(windows)
        words: list[Words] = []
        if tags and self.entity_types is not None:
            words = [self.words(window, texts[window.text][window.start : window.end]) for window in windows]
        with torch.inference_mode():
            outputs = self.model(
                ids, mask, words=self.pad_words(words) if words else None, classes=tags, tags=bool(words)
            )
        assert_finite(outputs.layer_means, name=self.name)
        return BatchResult(
            means=outputs.layer_means.float().cpu().numpy(),
            class_logits=None if outputs.class_logits is None else outputs.class_logits.float().cpu().numpy(),
            spans=[[] for _ in windows]
            if outputs.tag_logits is None
            else self.decode(outputs.tag_logits.float().cpu().numpy(), words),
        )

    def pad(self, windows: Sequence[Window]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, int64 (windows, longest), on the model's device."""
        longest = max(len(window.ids) for window in windows)
        ids = np.full((len(windows), longest), self._pad_id, dtype=np.int64)
        mask = np.zeros((len(windows), longest), dtype=np.int64)
        for row, window in enumerate(windows):
            ids[row, : len(window.ids)] = window.ids
            mask[row, : len(window.ids)] = 1
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)

    def words(self, window: Window, piece: str) -> Words:
        """The words of a window, whose text is `piece`."""
        whole = self.config.tag_head == "contextual"
        return cut_words(piece, self.token_offsets(window, piece), whole=whole, shapes=self.config.tag_shapes)

    def pad_words(self, words: Sequence[Words]) -> WordBatch:
        """The words of each window, padded, on the model's device."""
        return pad_words(words, self.device)

    def decode(self, logits: npt.NDArray[np.float32], words: Sequence[Words]) -> list[list[Span]]:
        """Tag logits (windows, words, labels) → spans of each window, by Viterbi over its words."""
        types = self.entity_types or ()
        lengths = np.array([len(cut.offsets) for cut in words], dtype=np.int64)
        emissions = iob.log_softmax(logits)
        for row, cut in enumerate(words):
            if not all(cut.tokens):  # a word without a token is O
                emissions[row, : lengths[row]][~cut.known] = [0.0] + [-np.inf] * (logits.shape[2] - 1)
        labels = iob.viterbi(emissions, lengths)
        spans: list[list[Span]] = [[] for _ in words]
        rows = np.flatnonzero(labels.any(axis=1))
        chosen = labels[rows]
        probabilities = np.exp(np.take_along_axis(emissions[rows], chosen[:, :, None], axis=2)[:, :, 0])
        for row, own, scores in zip(rows.tolist(), chosen.tolist(), probabilities.tolist(), strict=True):
            offsets = words[row].offsets
            spans[row] = [
                Span(types[kind], offsets[begin][0], offsets[end - 1][1], sum(scores[begin:end]) / (end - begin))
                for kind, begin, end in iob.spans_of_labels(own)
            ]
        return spans

    def token_offsets(self, window: Window, piece: str) -> iob.Offsets:
        """Offsets of a window's tokens into its piece of text, without leading white space; none below 0."""
        offsets: iob.Offsets = window.offsets
        prefix = self.config.prefix
        if self._offsets_hold_spaces:  # the first word's token may begin with the prefix's last space
            within = [(start + len(prefix), end + len(prefix)) for start, end in offsets]
            offsets = [(a - len(prefix), b - len(prefix)) for a, b in iob.trim_offsets(prefix + piece, within)]
        if prefix:  # a token that begins in the prefix is not tagged
            offsets = [(start, end) if start >= 0 else (0, 0) for start, end in offsets]
        return offsets

    def _combine(
        self, windows: Sequence[Window], means: FloatArray, logits: FloatArray | None, spans: Sequence[Sequence[Span]]
    ) -> list[Analysis]:
        """What was found of all windows, in their order → the analysis of each text.

        A text of several windows has their token-weighted means, and the union of their spans.
        """
        vectors = self._embedding(means)
        bounds = [at for at, window in enumerate(windows) if at == 0 or window.text != windows[at - 1].text]
        texts = list(zip(bounds, [*bounds[1:], len(windows)], strict=True))
        pooled, class_logits = vectors[bounds], None if logits is None else logits[bounds].astype(np.float64)
        for number, (first, end) in enumerate(texts):
            if end - first > 1:
                tokens = np.array([len(window.ids) for window in windows[first:end]], dtype=np.float64)
                share = tokens / tokens.sum()
                whole = np.tensordot(share, means[first:end], axes=1).astype(np.float32)
                pooled[number] = self._embedding(whole[None])[0]
                if logits is not None and class_logits is not None:
                    class_logits[number] = share @ logits[first:end]
        labels = [None] * len(texts) if class_logits is None else self._labels(class_logits)
        return [
            Analysis(
                passages=tuple(Passage(window.start, window.end, len(window.ids)) for window in windows[first:end]),
                vectors=vectors[first:end],
                pooled=pooled[number],
                label=labels[number],
                spans=tuple(
                    span if window.start == 0 else _moved(span, window.start)
                    for window, own in zip(windows[first:end], spans[first:end], strict=True)
                    for span in own
                ),
            )
            for number, (first, end) in enumerate(texts)
        ]

    def _embedding(self, means: FloatArray) -> FloatArray:
        tensor = concatenate_layers(
            torch.from_numpy(means), weights=self.config.weights, normalize=self.config.normalize_layers
        )
        result: FloatArray = tensor.numpy()
        return result

    def _labels(self, logits: npt.NDArray[np.float64]) -> list[Label | None]:
        """The class head's answers to logits (texts, classes); `None` where the best score is below the threshold."""
        scaled = logits / self.config.class_temperature
        probabilities = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        names, best = self.class_labels or (), probabilities.argmax(axis=1)
        scores = probabilities[np.arange(len(best)), best]
        return [
            None if score < self.config.class_threshold else Label(name=names[at], score=float(score))
            for at, score in zip(best.tolist(), scores, strict=True)
        ]


def _moved(span: Span, by: int) -> Span:
    return Span(span.type, span.start + by, span.end + by, span.score)


def choose_device(name: str) -> torch.device:
    """The device for a name: auto takes a GPU where there is one. Raises `ModelError`."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"unknown device '{name}': use auto, cpu or cuda") from error
    if device.type not in BATCH_TOKENS:
        raise ModelError(f"device '{name}' is not supported: use auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device '{name}' was asked for, but this installation of torch sees no GPU: use cpu")
    return device


def assert_finite(means: Tensor, *, name: str) -> None:
    """Raise `ModelError` where a model gives NaN or infinity."""
    if not all_finite(means):
        raise ModelError(f"the model {name} gave an embedding that is not finite; its weights cannot be right")


def _offsets_hold_spaces(tokenizer: object) -> bool:
    """True where a token's offsets include the white space before it (SentencePiece's way)."""
    encoding = tokenizer.encode("a b", add_special_tokens=False)  # type: ignore[attr-defined]
    return any("a b"[start:end].startswith(" ") for start, end in encoding.offsets)
