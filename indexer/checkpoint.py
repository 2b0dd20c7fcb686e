"""Models on disk: a folder with config.json, safetensors weights and a tokenizer; never pickle, never code.

Three kinds of name are understood: `None` (the default model inside this package), a folder saved by
`save_checkpoint`, and any Hugging Face encoder by folder or hub name, which then has no heads.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from indexer.adapter import Adapter, merge, split_adapter, to_tensors
from indexer.backbones import (
    PUBLISHED,
    TOKENIZER,
    check_fit,
    check_folder_size,
    find_folder,
    load_backbone,
    load_parts,
    load_tokenizer,
    published_folder,
    window_of,
)
from indexer.bert import BertConfig
from indexer.config import TagdexConfig, check_types
from indexer.errors import ModelError
from indexer.fingerprint import (
    TOKENIZER_PROBE,
    embedding_fingerprint,
    heads_fingerprint,
    tensors_digest,
    tokenizer_digest,
)
from indexer.finite import all_finite
from indexer.folders import check_size, check_weights, no_panic, one_line, read_json, read_weights
from indexer.heads import MultiTaskModel, build_backbone
from indexer.sources import BackboneSource, cached_digest, find_backbone

DEFAULT_MODEL = Path(__file__).parent / "models" / "default"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model as it came from disk, in fp32 on the CPU, in eval mode.

    `fingerprint` names everything that determines an embedding; `heads_fingerprint` what determines class and
    tags on top of it, `None` where there are no heads. Both are SHA-256 in hex.
    """

    model: MultiTaskModel
    tokenizer: Tokenizer
    name: str
    fingerprint: str
    heads_fingerprint: str | None


def load_checkpoint(name: str | Path | None = None) -> Loaded:
    """Load a model by folder or name; see the module's docstring. Raises `ModelError`."""
    if name is None or str(name) == "default":
        if not (DEFAULT_MODEL / CONFIG).is_file():
            raise ModelError(f"this installation lacks its default model, {DEFAULT_MODEL}; install tagdex again")
        return _load_own(DEFAULT_MODEL, name="default")
    text = str(name)
    folder = find_folder(text)
    if folder is not None:
        if read_json(folder / CONFIG).get("model_type") == TagdexConfig.model_type:
            return _load_own(folder, name=str(folder.resolve()))
        return _load_raw(str(folder), name=str(folder.resolve()))
    if text in PUBLISHED:
        return _load_raw(str(find_backbone(PUBLISHED[text])), name=text)
    return _load_raw(text, name=text)


def save_checkpoint(
    loaded: Loaded, folder: str | Path, *, backbone: bool = True, adapter: Adapter | None = None
) -> None:
    """Write a model to a folder that must be new or empty. Raises `ModelError`.

    With `backbone=False` only the heads are written, and the `adapter` if there is one. The configuration must name a
    `backbone_source`, and the model's backbone must be that one, with the adapter merged in: see `with_adapter`.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ModelError(f"{folder} is not empty: choose another folder, so that no model is overwritten")
    if backbone and adapter is not None:
        raise ModelError("a checkpoint with its whole backbone takes no adapter: that is in the weights already")
    if not backbone:
        _check_apart(loaded, adapter)
    folder.mkdir(parents=True, exist_ok=True)
    config = TagdexConfig.from_dict(loaded.model.config.to_dict())
    config.adapter_scale = None if adapter is None else adapter.scale
    if backbone:
        config.backbone_source = None
        loaded.tokenizer.save(str(folder / TOKENIZER))
    weights = {
        key: tensor.contiguous().clone()
        for key, tensor in loaded.model.state_dict().items()
        if backbone or not key.startswith("backbone.")
    }
    if adapter is not None:
        weights |= to_tensors(adapter)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    config.save(folder)


def with_adapter(base: Loaded, adapter: Adapter, *, source: BackboneSource | None = None) -> Loaded:
    """A model with the heads of `base` on its published backbone, into which the adapter is merged.

    It is, bit by bit, what `save_checkpoint(…, backbone=False, adapter=adapter)` writes and `load_checkpoint` reads.
    The weights of `base`'s own backbone play no part, so it may be the model that the adapter was trained with.
    `source`: the published backbone, where the configuration of `base` names none. Raises `ModelError`.
    """
    reference = base.model.config.backbone_source if source is None else source.reference
    if reference is None:
        raise ModelError("an adapter needs the published backbone that it changes: config.backbone_source, or source")
    model = copy.deepcopy(base.model).cpu()
    model.config.backbone_source = dict(reference)
    model.config.adapter_scale = adapter.scale
    folder = find_backbone(source) if source is not None else published_folder(reference)
    backbone, before = load_backbone(str(folder), name=str(folder)), model.backbone.state_dict()
    for key, tensor in backbone.state_dict().items():
        if key not in before:
            raise ModelError(f"{folder} holds {key}, which the model's backbone does not have")
        if tensor.shape != (shape := before[key].shape):
            found = f"{list(tensor.shape)}, but the model's has the shape {list(shape)}"
            raise ModelError(f"{folder} holds {key} of shape {found}")
    backbone.load_state_dict(merge(backbone.state_dict(), adapter))
    model.backbone = backbone
    return attach(model, load_tokenizer(folder), name=base.name)


def with_heads(
    base: Loaded,
    *,
    class_labels: Sequence[str] | None = None,
    entity_types: Sequence[str] | None = None,
    tag_head: str = "linear",
    tag_layers: Sequence[int] | None = None,
    tag_shapes: bool = False,
    seed: int = 0,
) -> Loaded:
    """A new model on the same backbone and pooling, with fresh heads, to be trained, for the labels given.

    A head whose labels are not given is taken over from `base`, weights included, if it has one. Embeddings stay
    what they were, and so does the fingerprint. `base` is not changed, but shares its backbone's weights.
    """
    config = TagdexConfig.from_dict(base.model.config.to_dict())
    if class_labels is not None:
        config.class_labels, config.class_head = list(class_labels), "linear"
        config.class_temperature, config.class_threshold = 1.0, 0.0
    if entity_types is not None:
        config.entity_types, config.tag_head = list(entity_types), tag_head
        config.tag_layers = None if tag_layers is None else list(tag_layers)
        config.tag_shapes = tag_shapes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MultiTaskModel(config)
    model.backbone = base.model.backbone
    if class_labels is None:
        model.class_head = base.model.class_head
    if entity_types is None:
        model.tag_head = base.model.tag_head
    model.eval()
    return replace(base, model=model, heads_fingerprint=heads_fingerprint(model))


def attach(
    model: MultiTaskModel,
    tokenizer: Tokenizer,
    *,
    name: str,
    cache: tuple[str, list[Path]] | None = None,
    tokenizer_file: Path | None = None,
) -> Loaded:
    """A `Loaded` for a model built in memory: computes its fingerprints.

    `cache` may name the files that the backbone's weights come from, and `tokenizer_file` the one with all of the
    tokenizer, so that their digests are remembered. Raises `ModelError` where tokenizer, window and backbone do not fit
    each other.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    model.eval()
    with no_panic(name):
        tokenizer.encode_batch(list(TOKENIZER_PROBE))
        check_fit(model, tokenizer, name=name)

    kind, files = cache or ("", [])
    backbone_digest = _remembered(f"tensors:{kind}", files, lambda: tensors_digest(model.backbone.state_dict()))
    # What the tokenizer's file means may change with the library that reads it.
    kind, files = f"tokenizer:{tokenizers.__version__}", [tokenizer_file] if tokenizer_file else []
    words_digest = _remembered(kind, files, lambda: tokenizer_digest(tokenizer))
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        name=name,
        fingerprint=embedding_fingerprint(model.config, model.backbone.config, backbone_digest, words_digest),
        heads_fingerprint=heads_fingerprint(model),
    )


def _remembered(kind: str, files: list[Path], compute: Callable[[], str]) -> str:
    """A digest, which is remembered where it is one of files."""
    return cached_digest(kind, files, compute) if files else compute()


def _load_own(folder: Path, *, name: str) -> Loaded:
    place = str(folder / CONFIG)
    files = [folder / WEIGHTS]
    tokenizer_folder = folder
    try:
        config = TagdexConfig.from_dict(read_json(folder / CONFIG))
        backbone_config = config.backbone_config()
        if config.backbone_source is not None:
            check_types(config)
            tokenizer_folder = published_folder(config.backbone_source)
            files.append(tokenizer_folder / WEIGHTS)
        available = check_weights(file for file in files if file.is_file())
        layers = getattr(backbone_config, "num_hidden_layers", None)
        model = check_size(lambda: MultiTaskModel(config), layers=layers, available=available, place=place)
        # Ours has no tensors but weights, and all of them will be put in: the one without memory will do.
        if not isinstance(backbone_config, BertConfig):
            model = MultiTaskModel(config)
    except ModelError as error:
        raise ModelError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from error
    except (Exception, MemoryError) as error:  # a configuration can break a backbone's constructor in any way
        raise ModelError(f"{place} does not describe a model: {one_line(error)}") from error
    weights = read_weights(folder / WEIGHTS)
    adapter = split_adapter(weights, config, place=str(folder / WEIGHTS))
    kind, ready = "own", frozenset[str]()
    if config.backbone_source is not None:
        model.backbone = load_backbone(str(tokenizer_folder), name=name)
        backbone = model.backbone.state_dict()
        if adapter is not None:
            backbone = merge(backbone, adapter, place=str(folder / WEIGHTS))
            kind = f"own, adapter_scale {adapter.scale!r}"  # it stands in none of the files that the cache looks at
        whole = {f"backbone.{key}": value for key, value in backbone.items()}
        weights, ready = weights | whole, frozenset(whole)
    _fill(model, weights, path=folder / WEIGHTS, ready=ready)
    tokenizer_file = tokenizer_folder / TOKENIZER
    return attach(
        model, load_tokenizer(tokenizer_folder), name=name, cache=(kind, files), tokenizer_file=tokenizer_file
    )


def _check_apart(loaded: Loaded, adapter: Adapter | None) -> None:
    """Raise `ModelError` where a model without its backbone's weights would be loaded as another one."""
    source = loaded.model.config.backbone_source
    if source is None:
        raise ModelError("a checkpoint without its backbone needs config.backbone_source")
    folder = published_folder(source)
    expected = load_backbone(str(folder), name=str(folder)).state_dict()
    published = f"{source['name']}{' with this adapter' if adapter is not None else ''}"
    if adapter is not None:
        expected = merge(expected, adapter)
    found = {key: tensor.cpu() for key, tensor in loaded.model.backbone.state_dict().items()}
    keys = sorted(expected.keys() | found.keys())
    wrong = [key for key in keys if key not in found or key not in expected or not found[key].equal(expected[key])]
    if wrong:
        raise ModelError(
            f"the model's backbone is not {published}: {len(wrong)} of {len(keys)} weights differ, such as {wrong[0]}; "
            "save it with its backbone, or make it by with_adapter first"
        )
    if tokenizer_digest(loaded.tokenizer) != tokenizer_digest(load_tokenizer(folder)):
        raise ModelError(f"the model's tokenizer is not that of {published}: save it with its backbone")


def _load_raw(source: str, *, name: str) -> Loaded:
    """Any Hugging Face encoder: plain concatenation of its last four layers, no heads."""
    backbone_config, fast = load_parts(source, name=name)
    files = check_folder_size(source, backbone_config, lambda: build_backbone(backbone_config))
    if len(fast.get_vocab().keys() - set(fast.all_special_tokens)) < 2:  # made up by the loader: no file was there
        raise ModelError(f"{name} has no tokenizer: tokenizer.json is missing, or holds nothing but special tokens")
    backbone = load_backbone(source, name=name)
    config = TagdexConfig(
        encoder_config=backbone_config.to_dict(), max_length=window_of(backbone_config, fast.model_max_length)
    )
    model = MultiTaskModel(config)
    model.backbone = backbone
    return attach(model, fast.backend_tokenizer, name=name, cache=("raw", files) if files else None)


def _fill(model: nn.Module, weights: Mapping[str, Tensor], *, path: Path, ready: Set[str] = frozenset()) -> None:
    """Put the weights into the model; names and shapes must agree exactly.

    Those that are `ready` were loaded before, in memory of their own, and looked at.
    """
    expected = model.state_dict()
    missing, unexpected = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or unexpected:
        found = f"lacks {missing[0]}" if missing else f"has {unexpected[0]}, which the model does not"
        raise ModelError(f"{path} does not fit config.json: it {found}")
    for key, tensor in weights.items():
        if tensor.shape != expected[key].shape:
            raise ModelError(
                f"{path} does not fit config.json: {key} has shape {list(tensor.shape)}, "
                f"expected {list(expected[key].shape)}"
            )
        if tensor.is_floating_point() != expected[key].is_floating_point():
            raise ModelError(
                f"{path} does not fit config.json: {key} has {tensor.dtype}, expected {expected[key].dtype}"
            )
        if key not in ready and tensor.is_floating_point() and not all_finite(tensor.float()):
            raise ModelError(f"{path}: {key} holds values that are not finite")
    # In memory of their own: those that were read may lie in the file.
    own = {key: tensor.to(expected[key].dtype, copy=key not in ready) for key, tensor in weights.items()}
    model.load_state_dict(own, assign=True)
