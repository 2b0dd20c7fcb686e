"""Reranking: a cross-encoder reads query and passage together, and says how well the one answers the other.

Slower than comparing vectors by orders of magnitude, as every pair is a pass through a model; so it is asked about the
best hits of a search only.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForSequenceClassification

from indexer.backbones import (
    LOADING,
    MIN_ROOM,
    cannot_load,
    check_finite,
    check_folder_size,
    find_folder,
    load_parts,
    positions_of,
    quiet_loading,
)
from indexer.batches import plan_batches
from indexer.errors import ModelError, QueryError
from indexer.folders import no_panic
from indexer.model import BATCH_TOKENS, UNMASKED, choose_device

MAX_TOKENS = 512  # of query and passage together; fewer where the model takes fewer


@dataclass(frozen=True, slots=True)
class Scored:
    """fp64 `scores` (passages,) in [0, 1], and how many of the passages were cut because they were too long."""

    scores: npt.NDArray[np.float64]
    truncated: int


class CrossEncoder:
    """A model for sequence classification that scores pairs of query and passage. Safe to use from several threads.

    With one label its logit goes through a sigmoid; of two, the second is the one for a passage that answers, and its
    share of the softmax is the score.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        *,
        name: str,
        token_types: bool = True,
        max_tokens: int = MAX_TOKENS,
        device: str = "auto",
    ) -> None:
        """`tokenizer` is changed: it cuts the second text of a pair. `token_types`: whether the model is told which is
        which. `max_tokens` of a pair are read, fewer where the model has fewer positions.

        Raises `ModelError` for parts that do not fit.
        """
        self.name = name
        self.device = choose_device(device)
        self.config = model.config
        self._model: nn.Module = model.to(self.device).eval()
        self.max_tokens = min(max_tokens, positions_of(self.config))
        self._pad_id = int(getattr(self.config, "pad_token_id", None) or 0)
        _check_fit(self.config, tokenizer, name=name)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._whole = Tokenizer.from_str(tokenizer.to_str())
        tokenizer.enable_truncation(self.max_tokens, strategy="only_second")
        self._tokenizer = tokenizer
        takes_types = token_types and "token_type_ids" in inspect.signature(model.forward).parameters
        self._types = int(getattr(self.config, "type_vocab_size", 0) or 0) if takes_types else 0

    @classmethod
    def load(cls, name: str | Path, *, device: str = "auto") -> CrossEncoder:
        """Load a cross-encoder by folder or hub name: safetensors only, and no code of its own. Raises `ModelError`."""
        choose_device(device)
        text = str(name)
        folder = find_folder(text)
        source = text if folder is None else str(folder)
        config, fast = load_parts(source, name=text)
        if config.num_labels not in (1, 2):
            raise ModelError(
                f"{text} tells {config.num_labels} classes apart; a cross-encoder for reranking has 1 or 2"
            )
        model = _load_model(source, config, name=text)
        types, limit = "token_type_ids" in fast.model_input_names, min(MAX_TOKENS, int(fast.model_max_length))
        return cls(model, fast.backend_tokenizer, name=text, token_types=types, max_tokens=limit, device=device)

    def score(self, query: str, passages: Sequence[str]) -> Scored:
        """How well each passage answers the query. A passage that is too long is cut at its end, the query never.

        Raises `QueryError` for a query that leaves no room for a passage.
        """
        taken = len(self._whole.encode(query, "").ids)
        if taken + MIN_ROOM > self.max_tokens:
            raise QueryError(
                f"the query takes {taken} of the {self.max_tokens} tokens that {self.name} reads at once, which leaves "
                "no room for a passage: shorten the query, or search without reranking"
            )
        # Each once: how a row of a batch is rounded depends on its place there, and the same passages must tie.
        distinct = {passage: at for at, passage in enumerate(dict.fromkeys(passages))}
        with no_panic(self.name):
            encodings = self._tokenizer.encode_batch([(query, passage) for passage in distinct])
        scores = np.zeros(len(distinct), dtype=np.float64)
        lengths = [len(encoding.ids) for encoding in encodings]
        padding = self.config.model_type not in UNMASKED
        for batch in plan_batches(lengths, max_tokens=BATCH_TOKENS[self.device.type], padding=padding):
            scores[batch] = self._run([encodings[at] for at in batch])
        rows = np.array([distinct[passage] for passage in passages], dtype=np.int64)
        return Scored(scores[rows], sum(bool(encodings[row].overflowing) for row in rows))

    def _run(self, encodings: Sequence[Any]) -> npt.NDArray[np.float64]:
        """The scores of one batch."""
        longest = max(len(encoding.ids) for encoding in encodings)
        ids = np.full((len(encodings), longest), self._pad_id, dtype=np.int64)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding.ids)] = encoding.ids
            mask[row, : len(encoding.ids)] = 1
            types[row, : len(encoding.ids)] = encoding.type_ids
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self._types > types.max():
            inputs["token_type_ids"] = types
        with torch.inference_mode():
            outputs = self._model(**{name: torch.from_numpy(value).to(self.device) for name, value in inputs.items()})
        logits = outputs.logits.float().cpu().numpy().astype(np.float64)
        if not np.isfinite(logits).all():
            raise ModelError(f"{self.name} gave a score that is not finite; its weights cannot be right")
        margins = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
        scores: npt.NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -margins))
        return scores


def _load_model(source: str, config: Any, *, name: str) -> Any:
    """The pretrained classifier, in fp32; every one of its weights must be there."""
    check_folder_size(
        source, config, lambda: AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    )
    with quiet_loading():
        try:
            model, info = AutoModelForSequenceClassification.from_pretrained(source, config=config, **LOADING)
        except Exception as error:
            raise ModelError(cannot_load(source, error)) from error
    wrong = sorted(info["missing_keys"]) or sorted(str(key[0]) for key in info["mismatched_keys"])
    if wrong:
        raise ModelError(
            f"{name} is no cross-encoder: {len(wrong)} weights of a model for sequence classification are missing or "
            f"of another shape, such as {wrong[0]}"
        )
    check_finite(model, name=name)
    return model


def _check_fit(config: Any, tokenizer: Tokenizer, *, name: str) -> None:
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest < 1:
        raise ModelError(f"{name} has no tokenizer: tokenizer.json is missing, or holds no words")
    if largest >= (entries := int(getattr(config, "vocab_size", None) or 2**31)):
        raise ModelError(f"{name}: the tokenizer gives ids up to {largest}, but the model knows {entries} entries")
