"""Small deterministic models for the tests: every tokenizer family, any backbone family, random weights."""

from __future__ import annotations

import string
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedTokenizerFast

from indexer.checkpoint import Loaded, attach
from indexer.config import TagdexConfig
from indexer.heads import LinearTagHead, MultiTaskModel

LABELS = ["sport", "science", "music"]
TYPES = ["PER", "ORG", "LOC", "WORK", "EVENT"]

PUNCTUATION = ".,;:!?'\"()[]-–—/&%#@+"
WORDS = ("hello", "there", "the", "ada", "lovelace", "london", "paris", "acme", "met", "in", "angstrom", "zurich")


def wordpiece(
    words: Sequence[str] = WORDS, *, lowercase: bool = True, strip_accents: bool = True, extra: str = ""
) -> Tokenizer:
    """BERT's tokenizer: Latin letters, digits and punctuation never need [UNK], `words` and `extra` are entries."""
    letters = string.ascii_lowercase + string.digits + ("" if lowercase else string.ascii_uppercase)
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PUNCTUATION, *letters, *(f"##{c}" for c in letters)]
    entries += [*words, *extra]
    tokenizer = Tokenizer(models.WordPiece({entry: i for i, entry in enumerate(entries)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(entries[:5])
    return tokenizer


def byte_bpe(words: Sequence[str] = (), *, trim_offsets: bool = True) -> Tokenizer:
    """RoBERTa's tokenizer: 256 bytes, and each of `words` (with its leading space, if it has one) as one token."""
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges: list[tuple[str, str]] = []
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for word in words:
        ((symbols, _),) = splitter.pre_tokenize_str(word)
        for end in range(1, len(symbols)):
            merge = (symbols[:end], symbols[end])
            if merge not in merges:
                merges.append(merge)
                vocabulary.append(symbols[: end + 1])
    tokenizer = Tokenizer(models.BPE({entry: i for i, entry in enumerate(vocabulary)}, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=trim_offsets, add_prefix_space=False
    )
    tokenizer.add_special_tokens(vocabulary[:4])
    return tokenizer


def metaspace(words: Sequence[str] = ()) -> Tokenizer:
    """SentencePiece's way: Unigram over pieces whose offsets include the space before them."""
    letters = [(c, -10.0) for c in string.ascii_letters + string.digits + PUNCTUATION]
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0), *letters]
    tokenizer = Tokenizer(models.Unigram([*pieces, *((f"▁{word}", -2.0) for word in words)], unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    return tokenizer


def backbone_config(family: str = "bert", *, vocabulary: int, pad_id: int = 0, **changes: Any) -> PreTrainedConfig:
    """4 layers of width 32; weights are drawn wide, so that texts differ clearly."""
    fields: dict[str, Any] = {
        "vocab_size": vocabulary,
        "pad_token_id": pad_id,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 160,
        "initializer_range": 0.2,
    }
    if family == "distilbert":  # its own names for the same things
        for ours in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            del fields[ours]
        fields |= {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 64}
    elif family in ("electra", "albert"):
        fields["embedding_size"] = 16
    elif family == "deberta-v2":
        fields |= {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
        fields |= {"share_att_key": True, "position_biased_input": False, "norm_rel_ebd": "layer_norm"}
    elif family == "modernbert":
        fields |= {"local_attention": 8, "global_attn_every_n_layers": 2}
        fields |= {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    return AutoConfig.for_model(family, **(fields | changes))


def tiny(
    tokenizer: Tokenizer | None = None,
    *,
    family: str = "bert",
    seed: int = 0,
    encoder: dict[str, Any] | None = None,
    **fields: Any,
) -> Loaded:
    """A random model around a tokenizer. `encoder` changes the backbone's configuration, `fields` the model's."""
    tokenizer = wordpiece() if tokenizer is None else tokenizer
    pad_id = next(i for i in map(tokenizer.token_to_id, ("[PAD]", "<pad>")) if i is not None)
    backbone = backbone_config(family, vocabulary=tokenizer.get_vocab_size(), pad_id=pad_id, **(encoder or {}))
    torch.manual_seed(seed)
    model = MultiTaskModel(TagdexConfig(encoder_config=backbone.to_dict(), **({"max_length": 128} | fields)))
    with torch.no_grad():
        for head in (model.class_head, model.tag_head):
            for parameter in head.parameters() if head is not None else ():
                parameter.normal_(std=0.5)
    return attach(model, tokenizer, name="tiny")


def multi_task(tokenizer: Tokenizer | None = None, **options: Any) -> Loaded:
    """`tiny` with 3 classes and 5 entity types."""
    return tiny(tokenizer, **({"class_labels": LABELS, "entity_types": TYPES} | options))


def marking(
    tokenizer: Tokenizer,
    *,
    begin: Collection[int],
    inside: Collection[int] = (),
    logit: float = 8.0,
    family: str = "bert",
    **fields: Any,
) -> Loaded:
    """A model that tags by token id alone: `begin` ids as B-ENT, `inside` ids as I-ENT, all others as O.

    The tag head reads the embedding layer, whose rows are set by hand to one of three directions; the label meant
    has the logit `logit`, the others 0.
    """
    loaded = tiny(tokenizer, family=family, entity_types=["ENT"], tag_layers=[0], **fields)
    embeddings = loaded.model.backbone.embeddings
    kinds = torch.zeros(tokenizer.get_vocab_size(), dtype=torch.long)
    kinds[list(begin)] = 1
    kinds[list(inside)] = 2
    directions = torch.zeros(3, 32)
    for kind in range(3):  # orthogonal, mean 0 and variance 1, so that layer normalisation leaves them alone
        directions[kind, 2 * kind], directions[kind, 2 * kind + 1] = 4.0, -4.0
    head = loaded.model.tag_head
    assert isinstance(head, LinearTagHead)
    with torch.no_grad():
        for name, parameter in embeddings.named_parameters():
            if "LayerNorm" not in name:
                parameter.zero_()
        embeddings.word_embeddings.weight.copy_(directions[kinds])
        (linear,) = head.projection.of_layer
        linear.bias.zero_()
        linear.weight.copy_(directions * logit / 32.0)
    return attach(loaded.model, tokenizer, name="marking")


def save_raw(folder: Path, tokenizer: Tokenizer, family: str = "bert", *, seed: int = 0, **changes: Any) -> nn.Module:
    """A folder as Hugging Face's `save_pretrained` writes it; returns the backbone that lies in it."""
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    if tokenizer.token_to_id("[PAD]") is None:
        special = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"}
    pad_id = tokenizer.token_to_id(special["pad_token"])
    torch.manual_seed(seed)
    config = backbone_config(family, vocabulary=tokenizer.get_vocab_size(), pad_id=pad_id, **changes)
    backbone: nn.Module = AutoModel.from_config(config).eval()
    backbone.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return backbone
