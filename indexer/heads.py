"""The multi-task model: one backbone call gives the pooled layers, class logits and tag logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu

from indexer import bert
from indexer.config import TagdexConfig, check_config
from indexer.encoder import pool_layers
from indexer.errors import ModelError
from indexer.shapes import Shape
from indexer.words import WordBatch, word_means

SHAPE_WIDTH = 32
DILATIONS = 1, 2, 4  # of the contextual tag head's convolutions


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
        hidden = gelu(self.hidden(self.dropout(means.flatten(start_dim=1))))
        logits: Tensor = self.linear(self.dropout(hidden))
        return logits


class LinearTagHead(nn.Module):
    """Linear tagger on every word's state in L layers: L × (batch, words, width) → (batch, words, labels)."""

    def __init__(self, layers: int, width: int, labels: int, *, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.projection = LayersProjection(layers, width, labels, bias=True)

    def project(self, states: Sequence[Tensor]) -> Tensor:
        """What is linear, so that words' means are taken before or after it: L × (batch, seq, width) → (…, labels)."""
        projected: Tensor = self.projection([self.dropout(layer) for layer in states])
        return projected

    def forward(self, projected: Tensor, mask: Tensor, shapes: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return projected  # the heads share one signature


class ContextualTagHead(nn.Module):
    """Projection, three convolutions and linear layer over the words' states from a frozen backbone.

    The feature-based setting of BERT (Devlin et al. 2019, section 5.3), but over the means of words instead of tokens
    (Ács et al. 2021, "Subword pooling makes a difference"), and with dilated convolutions (Strubell et al. 2017, "Fast
    and accurate entity recognition with iterated dilated convolutions") in place of an LSTM: a word sees seven on
    either side. L × (batch, seq, width) → (batch, words, labels); padding does not change a word's logits.

    With `shapes`, the convolutions read an embedding of each word's `Shape` beside the projection (Collobert et al.
    2011).
    """

    def __init__(
        self, layers: int, width: int, labels: int, *, inner: int, dropout: float, shapes: bool = False
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.projection = LayersProjection(layers, width, inner, bias=False)
        self.norm = nn.LayerNorm(inner)
        self.shapes = ShapeEmbedding(dropout=dropout) if shapes else None
        read = inner + (SHAPE_WIDTH if shapes else 0)
        self.convolutions = nn.ModuleList(
            Convolution(inner if at else read, inner, dilation=by) for at, by in enumerate(DILATIONS)
        )
        self.linear = nn.Linear(inner, labels)

    def project(self, states: Sequence[Tensor]) -> Tensor:
        """What is linear, so that words' means are taken before or after it: L × (batch, seq, width) → (…, inner).

        Taken after it, they are means of far fewer numbers.
        """
        projected: Tensor = self.projection([self.dropout(layer) for layer in states])
        return projected

    def forward(self, projected: Tensor, mask: Tensor, shapes: Tensor | None = None) -> Tensor:
        words = relu(self.norm(projected))
        if self.shapes is not None:
            if shapes is None:
                raise ModelError(
                    "the tag head reads the shapes of words, and got none: pass what TextModel.word_batch gives"
                )
            words = torch.cat([words, self.shapes(shapes).to(words.dtype)], dim=2)
        first, *others = self.convolutions
        context = relu(first(words, mask))
        for convolution in others:
            context = context + relu(convolution(context, mask))
        logits: Tensor = self.linear(self.dropout(context))
        return logits


class LayersProjection(nn.Module):
    """A linear layer on the states of L layers, as if these stood behind each other: L × (…, in) → (…, out)."""

    def __init__(self, layers: int, width: int, out: int, *, bias: bool) -> None:
        super().__init__()
        self.of_layer = nn.ModuleList(nn.Linear(width, out, bias=bias and layer == 0) for layer in range(layers))

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        first, *others = (linear(layer) for linear, layer in zip(self.of_layer, states, strict=True))
        total: Tensor = sum(others, start=first)
        return total


class Convolution(nn.Module):
    """A convolution over a word and those `dilation` places before and behind it: (batch, words, in) → (…, out).

    Beyond a text's ends, where its padding begins, are zeros.
    """

    def __init__(self, width: int, out: int, *, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.linear = nn.Linear(3 * width, out)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        by, count = self.dilation, words.shape[1]
        padded = nn.functional.pad(words * mask.unsqueeze(2).to(words.dtype), (0, 0, by, by))
        around = torch.cat([padded[:, at : at + count] for at in (0, by, 2 * by)], dim=2)
        found: Tensor = self.linear(around)
        return found


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
            labels, layers = 2 * len(config.entity_types) + 1, len(config.tagged_layers)
            if config.tag_head == "linear":
                self.tag_head = LinearTagHead(layers, width, labels, dropout=config.head_dropout)
            else:
                self.tag_head = ContextualTagHead(
                    layers,
                    width,
                    labels,
                    inner=config.tag_head_width,
                    dropout=config.head_dropout,
                    shapes=config.tag_shapes,
                )
        for head in (self.class_head, self.tag_head):
            if head is not None and not self.is_meta:
                head.apply(initialise)

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
            projected = self.tag_head.project([states[layer].float() for layer in config.tagged_layers])
            if words is None:
                tag_logits = self.tag_head(projected, attention_mask)
            else:
                tag_logits = self.tag_head(word_means([projected], words), words.mask, words.shapes)
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


def initialise(module: nn.Module) -> None:
    """A head's first weights: linear layers as BERT's, convolutions as Glorot and Bengio (2010).

    Tables stay as they are, with a deviation of 1: shapes drawn as small as a linear layer's weights would be unheard
    for hundreds of steps.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, Convolution):  # after the linear layer in it
        nn.init.xavier_uniform_(module.linear.weight)
