"""Fingerprints: what names a model, so that an index is never searched or extended with another one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from tokenizers import Tokenizer
from torch import Tensor

from indexer.config import TagdexConfig
from indexer.heads import MultiTaskModel

# Configuration fields that change what a backbone computes from the same weights.
_ARCHITECTURE = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "activation",
    "hidden_activation",
    "layer_norm_eps",
    "norm_eps",
    "max_position_embeddings",
    "position_embedding_type",
    "position_biased_input",
    "relative_attention",
    "pos_att_type",
    "position_buckets",
    "max_relative_positions",
    "relative_attention_num_buckets",
    "share_att_key",
    "local_attention",
    "sliding_window",
    "layer_types",
    "global_attn_every_n_layers",
    "rope_parameters",
    "num_hidden_groups",
    "inner_group_num",
    "is_decoder",
    "pad_token_id",
)

# Texts that tokenizers treat differently: case, accents, scripts, white space, joined and very long words.
TOKENIZER_PROBE = (
    "Hello WORLD, it's 3.14 — naïve Ångström façade!",
    "Straße ＦＵＬＬ ｗｉｄｔｈ ﬁne Ⅳ e\u0301",
    "日本語と한국어 и русский العربية हिन्दी 😀👩‍💻",
    " \t two  spaces\nnew line\u00a0nbsp\u200bzero ",
    "[CLS] <s> [MASK] </s> http://example.org/a_b-c?d=1 user@host #tag 007 1e-5",
    "Donaudampfschifffahrtsgesellschaft " + "x" * 150,
)


def embedding_fingerprint(
    config: TagdexConfig, backbone_config: object, backbone_digest: str, tokenizer_digest: str
) -> str:
    """SHA-256 over all that determines an embedding: weights, architecture, tokenizer, pooling, prefix, window."""
    facts = {
        "backbone": backbone_digest,
        "architecture": {name: getattr(backbone_config, name, None) for name in _ARCHITECTURE},
        "tokenizer": tokenizer_digest,
        "pool_layers": config.pooled_layers,
        "layer_weights": config.weights,
        "normalize_layers": config.normalize_layers,
        "prefix": config.prefix,
        "max_length": config.max_length,
    }
    return _json_digest(facts)


def heads_fingerprint(model: MultiTaskModel) -> str | None:
    """SHA-256 over all that determines class and tags, given the backbone; `None` without heads."""
    config = model.config
    if model.class_head is None and model.tag_head is None:
        return None
    heads = {key: value for key, value in model.state_dict().items() if not key.startswith("backbone.")}
    facts = {
        "weights": tensors_digest(heads),
        "class_labels": config.class_labels,
        "entity_types": config.entity_types,
        "class_head": config.class_head,
        "tag_layers": config.tagged_layers,
        "tag_head": config.tag_head,
        "word_splitter": config.word_splitter,
        "class_temperature": config.class_temperature,
        "class_threshold": config.class_threshold,
    }
    if config.tag_shapes:  # named only where it is on, so that the fingerprints of older heads stay
        facts["tag_shapes"] = True
    return _json_digest(facts)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and fp32 values, sorted by name."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{key} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """SHA-256 over the vocabulary and the tokens of probe texts: the same however the tokenizer was saved."""
    encodings = tokenizer.encode_batch(list(TOKENIZER_PROBE), add_special_tokens=True)
    return _json_digest(
        {
            "vocabulary": sorted(tokenizer.get_vocab(with_added_tokens=True).items()),
            "probe": [encoding.ids for encoding in encodings],
        }
    )


def _json_digest(facts: object) -> str:
    canonical = json.dumps(facts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()
