"""BERT's encoder (Devlin et al. 2019) in plain torch: the backbone of the default model and of many others.

Its parameters are called as transformers calls them, and it computes the same, hardly faster. Why then not that:
importing its models takes longer than everything else that a command with one query does. What `reads` does not
understand, transformers computes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}

# What a configuration may say beside the fields of `BertConfig`, if it says just this: other values compute otherwise.
_ONLY: dict[str, tuple[object, ...]] = {
    "position_embedding_type": (None, "absolute"),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "embedding_size": (None,),
    "quantization_config": (None,),
}


@dataclass(kw_only=True)
class BertConfig:
    """The fields of a BERT configuration that matter here, with their published defaults; see `reads`."""

    model_type: str = "bert"
    vocab_size: int = 30_522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3_072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    position_embedding_type: str | None = None
    is_decoder: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a config.json."""
        return asdict(self)


def reads(config: Mapping[str, Any]) -> BertConfig | None:
    """The configuration of a config.json that this module can compute; `None` for any other, or a wrong one."""
    if config.get("model_type") != "bert":
        return None
    if any(config[key] not in allowed for key, allowed in _ONLY.items() if key in config):
        return None
    given = {field.name: config[field.name] for field in fields(BertConfig) if field.name in config}
    if not all(_is_right(name, value) for name, value in given.items()):
        return None
    found = BertConfig(**given)
    if found.hidden_size % found.num_attention_heads or found.hidden_act not in _ACTIVATIONS:
        return None
    return found if found.pad_token_id is None or found.pad_token_id < found.vocab_size else None


def _is_right(name: str, value: object) -> bool:
    """Whether a field's value is of its kind and in its range."""
    if name in _ONLY or name in ("model_type", "hidden_act"):
        return isinstance(value, str | bool | None)
    if isinstance(value, bool):
        return False
    if name.endswith("_prob"):
        return isinstance(value, int | float) and 0 <= value < 1
    if name in ("initializer_range", "layer_norm_eps"):
        return isinstance(value, int | float) and 0 < value < 1
    if name == "pad_token_id":
        return value is None or (isinstance(value, int) and value >= 0)
    return isinstance(value, int) and value > 0


@dataclass(frozen=True, slots=True)
class States:
    """`last_hidden_state` (batch, seq, width), and those of all layers that were asked for: index it, else `None`s."""

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor | None, ...] | None


class BertModel(nn.Module):
    """Token ids → states of every layer. Random weights until some are loaded."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        self.encoder = _Layers(config)
        if not self.embeddings.word_embeddings.weight.is_meta:
            self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding) and module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        output_hidden_states: Collection[int] | bool | None = None,
    ) -> States:
        """*Shapes:* both int64 (batch, seq). `output_hidden_states`: which to keep, from either end; True for all.

        Raises `ValueError` for more tokens than there are positions.
        """
        if input_ids.shape[1] > self.config.max_position_embeddings:
            positions = self.config.max_position_embeddings
            raise ValueError(f"the backbone takes {positions} tokens, got {input_ids.shape[1]}")
        count = self.config.num_hidden_layers + 1
        if isinstance(output_hidden_states, bool) or output_hidden_states is None:
            wanted = set(range(count)) if output_hidden_states else set()
        else:
            wanted = {layer % count for layer in output_hidden_states}
        states = self.embeddings(input_ids)
        mask = None if attention_mask is None else _additive(attention_mask, states.dtype)
        kept: list[Tensor | None] = [states if 0 in wanted else None]
        for number, layer in enumerate(self.encoder.layer, 1):
            states = layer(states, mask)
            kept.append(states if number in wanted else None)
        return States(states, tuple(kept) if wanted else None)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor | None:
    """0 for tokens and the lowest number for padding, (batch, 1, 1, seq); `None` on the CPU where nothing is padded."""
    if mask.device.type == "cpu" and bool(mask.all()):
        return None
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill(mask == 0, torch.finfo(dtype).min)[:, None, None, :]


def empty_table(entries: int, width: int, *, padding_idx: int | None = None) -> nn.Embedding:
    """An embedding whose vectors are still to be set; drawing them, on the meta device, would import a compiler."""
    vectors = torch.empty(entries, width)
    table: nn.Embedding = nn.Embedding.from_pretrained(  # type: ignore[no-untyped-call]
        vectors, freeze=False, padding_idx=padding_idx
    )
    return table


class _Embeddings(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = empty_table(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.position_embeddings = empty_table(config.max_position_embeddings, width)
        self.token_type_embeddings = empty_table(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, ids: Tensor) -> Tensor:
        states = self.word_embeddings(ids) + self.token_type_embeddings.weight[0]
        states = states + self.position_embeddings.weight[: ids.shape[1]]
        normed: Tensor = self.dropout(self.LayerNorm(states))
        return normed


class _Layers(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))


class _Layer(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.intermediate = _Intermediate(config)
        self.output = _Output(config.intermediate_size, config)

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        attended = self.attention(states, mask)
        layer: Tensor = self.output(self.intermediate(attended), attended)
        return layer


class _Attention(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self = _SelfAttention(config)
        self.output = _Output(config.hidden_size, config)

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        attended: Tensor = self.output(self.self(states, mask), states)
        return attended


class _SelfAttention(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        split = (*states.shape[:2], self.heads, -1)
        query, key, value = (
            projection(states).view(split).transpose(1, 2) for projection in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=self.dropout.p if self.training else 0.0
        )
        return mixed.transpose(1, 2).reshape(states.shape)


class _Intermediate(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.approximate = _ACTIVATIONS[config.hidden_act]

    def forward(self, states: Tensor) -> Tensor:
        return functional.gelu(self.dense(states), approximate=self.approximate)


class _Output(nn.Module):
    """Projection, dropout, and the norm of the sum with what came in."""

    def __init__(self, inner: int, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, states: Tensor, came_in: Tensor) -> Tensor:
        normed: Tensor = self.LayerNorm(self.dropout(self.dense(states)) + came_in)
        return normed
