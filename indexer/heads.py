"""The multi-task model: one backbone call gives the pooled layers, class logits and tag logits."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from indexer import bert
from indexer.config import TagdexConfig, check_config
from indexer.cores import one_thread
from indexer.encoder import pool_layers
from indexer.errors import ModelError
from indexer.shapes import Shape
from indexer.words import WordBatch, word_means

SHAPE_WIDTH = 32


@dataclass(frozen=True, slots=True)
class Outputs:
    """What one forward pass gives; a part that was not asked for, or has no head, is `None`.

    - `layer_means`: fp32 (batch, L, width), in the order of `config.pool_layers`.
    - `class_logits`: (batch, classes).
    - `tag_logits`: (batch, words, 2 · types + 1); what stands at padding means nothing.
    """

    layer_means: Tensor | None
    class_logits: Tensor | None
    tag_logits: Tensor | None


class ClassHead(nn.Module):
    """Linear classifier on the first token's state of the last layer: (batch, seq, width) → (batch, classes)."""

    def __init__(self, width: int, classes: int, *, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, classes)

    def forward(self, last: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.dropout(last[:, 0]))
        return logits


class PooledClassHead(nn.Module):
    """Classifier with one hidden layer on the means of the pooled layers: (batch, L, width) → (batch, classes).

    For a frozen backbone whose first token says little, such as one that was trained on the mean of its tokens.
    """

    def __init__(self, width: int, classes: int, *, inner: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(width, inner)
        self.linear = nn.Linear(inner, classes)

    def forward(self, means: Tensor) -> Tensor:
        hidden = torch.nn.functional.gelu(self.hidden(self.dropout(means.flatten(start_dim=1))))
        logits: Tensor = self.linear(self.dropout(hidden))
        return logits


class LinearTagHead(nn.Module):
    """Linear tagger on every word's state: (batch, words, width) → (batch, words, labels)."""

    def __init__(self, width: int, labels: int, *, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, labels)

    def forward(self, states: Tensor, mask: Tensor, shapes: Tensor | None = None) -> Tensor:  # noqa: ARG002
        logits: Tensor = self.linear(self.dropout(states))  # the heads share one signature
        return logits


class ContextualTagHead(nn.Module):
    """Projection, bidirectional LSTM and linear layer over the words' states from a frozen backbone.

    The feature-based setting of BERT (Devlin et al. 2019, section 5.3), which concatenates the last four layers, but
    over the means of words instead of tokens (Ács et al. 2021, "Subword pooling makes a difference").
    (batch, words, width) → (batch, words, labels); padding does not change a word's logits.

    The two directions are LSTMs of their own, the second of which reads each text backwards from its last word.
    One bidirectional LSTM would need packed sequences, for which torch leaves its fast path on CPUs.

    With `shapes`, the LSTMs read an embedding of each word's `Shape` beside the projection (Collobert et al. 2011).
    """

    def __init__(self, width: int, labels: int, *, inner: int, dropout: float, shapes: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(width, inner)
        self.shapes = ShapeEmbedding(dropout=dropout) if shapes else None
        read = inner + (SHAPE_WIDTH if shapes else 0)
        self.forward_lstm = nn.LSTM(read, inner // 2, batch_first=True)
        self.backward_lstm = nn.LSTM(read, inner // 2, batch_first=True)
        self.linear = nn.Linear(2 * (inner // 2), labels)

    def forward(self, states: Tensor, mask: Tensor, shapes: Tensor | None = None) -> Tensor:
        inner = torch.nn.functional.gelu(self.projection(self.dropout(self.norm(states))))
        if self.shapes is not None:
            if shapes is None:
                raise ModelError(
                    "the tag head reads the shapes of words, and got none: pass what TextModel.word_batch gives"
                )
            inner = torch.cat([inner, self.shapes(shapes).to(inner.dtype)], dim=2)
        order = _reversed(mask)
        with one_thread() if inner.device.type == "cpu" and not self.training else nullcontext():
            ahead, _ = self.forward_lstm(inner)
            back, _ = self.backward_lstm(_rows(inner, order))
        context = torch.cat([ahead, _rows(back, order)], dim=2)
        logits: Tensor = self.linear(self.dropout(context))
        return logits


class ShapeEmbedding(nn.Module):
    """One vector for each `Shape`: int64 (batch, seq) → (batch, seq, SHAPE_WIDTH).

    Dropout does not drop numbers of it, but whole shapes of words, which become UNKNOWN: the head must also get on
    without them.
    """

    def __init__(self, *, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.table = bert.empty_table(len(Shape), SHAPE_WIDTH)
        if not self.table.weight.is_meta:
            nn.init.normal_(self.table.weight)

    def forward(self, shapes: Tensor) -> Tensor:
        if self.training and self.dropout.p > 0:
            kept = self.dropout(torch.ones_like(shapes, dtype=torch.float32)) > 0
            shapes = torch.where(kept | (shapes <= Shape.UNKNOWN), shapes, int(Shape.UNKNOWN))
        vectors: Tensor = self.table(shapes)
        return vectors


def _reversed(mask: Tensor) -> Tensor:
    """The order that reads each text from its last word to its first, padding where it is: int64 (batch, words)."""
    positions = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    lengths = mask.sum(dim=1, keepdim=True)
    return torch.where(positions < lengths, lengths - 1 - positions, positions)


def _rows(states: Tensor, chosen: Tensor) -> Tensor:
    """Of states (batch, seq, width) those that `chosen`, int64 (batch, n), names in each text: (batch, n, width).

    Copying rows takes a tenth of the time of `gather`, which copies numbers.
    """
    starts = torch.arange(len(states), device=states.device).unsqueeze(1) * states.shape[1]
    rows = states.flatten(end_dim=1).index_select(0, (starts + chosen).flatten())
    return rows.view(*chosen.shape, states.shape[2])


class MultiTaskModel(nn.Module):
    """An encoder with an optional class head and an optional tag head.

    Built from its configuration alone, with random weights; `checkpoint.py` puts the trained ones in. Losses
    live outside, in `training/`.
    """

    backbone: Any  # of ours, of transformers, or wrapped by peft
    class_head: ClassHead | PooledClassHead | None
    tag_head: LinearTagHead | ContextualTagHead | None

    def __init__(self, config: TagdexConfig) -> None:
        super().__init__()
        self.config = config
        backbone_config = config.backbone_config()
        width = int(backbone_config.hidden_size)
        check_config(config, layers=int(backbone_config.num_hidden_layers))
        self.backbone = build_backbone(backbone_config)
        self.width = width
        self.class_head = None
        self.tag_head = None
        if config.class_labels is not None:
            classes = len(config.class_labels)
            if config.class_head == "linear":
                self.class_head = ClassHead(width, classes, dropout=config.head_dropout)
            else:
                self.class_head = PooledClassHead(
                    width * len(config.pooled_layers),
                    classes,
                    inner=config.class_head_width,
                    dropout=config.head_dropout,
                )
        if config.entity_types is not None:
            labels, tag_width = 2 * len(config.entity_types) + 1, width * len(config.tagged_layers)
            if config.tag_head == "linear":
                self.tag_head = LinearTagHead(tag_width, labels, dropout=config.head_dropout)
            else:
                self.tag_head = ContextualTagHead(
                    tag_width,
                    labels,
                    inner=config.tag_head_width,
                    dropout=config.head_dropout,
                    shapes=config.tag_shapes,
                )
        for head in (self.class_head, self.tag_head):
            if head is not None and not self.is_meta:
                head.apply(_initialise)

    @property
    def is_meta(self) -> bool:
        """Whether its weights have shapes alone, and no memory."""
        return next(self.parameters()).is_meta

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    @property
    def dimension(self) -> int:
        """Width of an embedding: pooled layers × hidden size."""
        return len(self.config.pooled_layers) * self.width

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        words: WordBatch | None = None,
        embedding: bool = True,
        classes: bool = True,
        tags: bool = True,
    ) -> Outputs:
        """One backbone call. *Shapes:* `input_ids`, `attention_mask` int64 (batch, seq); see `Outputs`.

        `words` are what the tag head reads; with `None` it takes every token for a word. Raises `ModelError` where a
        head with `config.tag_shapes` gets no shapes.
        """
        config = self.config
        tags = tags and self.tag_head is not None
        pooled = embedding or (classes and isinstance(self.class_head, PooledClassHead))
        wanted = set(config.pooled_layers if pooled else ()) | set(config.tagged_layers if tags else ())
        result = self.backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            # A list keeps only those states; the tuple stays as long as with True, so it can be indexed alike.
            output_hidden_states=sorted(wanted) or None,
        )
        states = result.hidden_states
        means = class_logits = tag_logits = None
        if pooled:
            means = pool_layers([states[layer] for layer in config.pooled_layers], attention_mask)
        if classes and isinstance(self.class_head, PooledClassHead):
            class_logits = self.class_head(means)
        elif classes and self.class_head is not None:
            class_logits = self.class_head(result.last_hidden_state.float())
        if tags and self.tag_head is not None:
            tagged = [states[layer] for layer in config.tagged_layers]
            if words is None:
                tag_logits = self.tag_head(torch.cat(tagged, dim=2).float(), attention_mask)
            else:
                tag_logits = self.tag_head(word_means(tagged, words), words.mask, words.shapes)
        return Outputs(layer_means=means if embedding else None, class_logits=class_logits, tag_logits=tag_logits)

    def token_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The states of every token in the pooled layers, in their order: (batch, L, seq, width)."""
        layers = self.config.pooled_layers
        result = self.backbone(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=sorted(set(layers))
        )
        return torch.stack([result.hidden_states[layer] for layer in layers], dim=1)


def build_backbone(config: object) -> nn.Module:
    """An encoder with random weights, without the pooler that some families add and that nothing here uses."""
    if isinstance(config, bert.BertConfig):
        return bert.BertModel(config)
    from transformers import AutoModel

    try:
        backbone: nn.Module = AutoModel.from_config(config, add_pooling_layer=False, trust_remote_code=False)
    except TypeError:  # families that have no pooler do not take the argument
        backbone = AutoModel.from_config(config, trust_remote_code=False)
    return backbone


def _initialise(module: nn.Module) -> None:
    """A head's first weights: linear layers as BERT's, LSTMs as Glorot and Bengio (2010).

    Tables stay as they are, with a deviation of 1: shapes drawn as small as a linear layer's weights would be unheard
    by the LSTMs for hundreds of steps.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LSTM):
        for name, parameter in module.named_parameters():
            if "weight" in name:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)
