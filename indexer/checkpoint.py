"""Models on disk: a folder with config.json, safetensors weights and a tokenizer; never pickle, never code.

Three kinds of name are understood: `None` (the default model inside this package), a folder saved by
`save_checkpoint`, and any Hugging Face encoder by folder or hub name, which then has no heads.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from indexer.config import TagdexConfig, check_types
from indexer.errors import ModelError
from indexer.folders import check_files, check_size, check_weights, no_panic
from indexer.heads import MultiTaskModel, build_backbone
from indexer.sources import HUB_TIMEOUT, MINILM, BackboneSource, cached_digest, find_backbone

DEFAULT_MODEL = Path(__file__).parent / "models" / "default"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"

PUBLISHED = {source.name: source for source in (MINILM,)}

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

MIN_ROOM = 8  # tokens of text in a window beside special tokens and prefix: more than one character ever takes

# Texts that tokenizers treat differently: case, accents, scripts, white space, joined and very long words.
_TOKENIZER_PROBE = (
    "Hello WORLD, it's 3.14 — naïve Ångström façade!",
    "Straße ＦＵＬＬ ｗｉｄｔｈ ﬁne Ⅳ e\u0301",
    "日本語と한국어 и русский العربية हिन्दी 😀👩‍💻",
    " \t two  spaces\nnew line\u00a0nbsp\u200bzero ",
    "[CLS] <s> [MASK] </s> http://example.org/a_b-c?d=1 user@host #tag 007 1e-5",
    "Donaudampfschifffahrtsgesellschaft " + "x" * 150,
)


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
        if not (DEFAULT_MODEL / "config.json").is_file():
            raise ModelError(f"this installation lacks its default model, {DEFAULT_MODEL}; install tagdex again")
        return _load_own(DEFAULT_MODEL, name="default")
    text = str(name)
    folder = Path(text).expanduser()
    if folder.is_dir():
        check_files(folder)
        config = _read_config(folder)
        if config.get("model_type") == TagdexConfig.model_type:
            return _load_own(folder, name=str(folder.resolve()))
        return _load_raw(str(folder), name=str(folder.resolve()))
    if folder.exists() or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise ModelError(f"{text} is not a model folder: give a folder with config.json, or a hub name")
    if text in PUBLISHED:
        return _load_raw(str(find_backbone(PUBLISHED[text])), name=text)
    return _load_raw(text, name=text)


def save_checkpoint(loaded: Loaded, folder: str | Path, *, backbone: bool = True) -> None:
    """Write a model to a folder that must be new or empty.

    With `backbone=False` only the heads are written, and the configuration must name a `backbone_source`.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ModelError(f"{folder} is not empty: choose another folder, so that no model is overwritten")
    if not backbone and loaded.model.config.backbone_source is None:
        raise ModelError("a checkpoint without its backbone needs config.backbone_source")
    folder.mkdir(parents=True, exist_ok=True)
    config = type(loaded.model.config).from_dict(loaded.model.config.to_dict())
    if backbone:
        config.backbone_source = None
        loaded.tokenizer.save(str(folder / TOKENIZER))
    weights = {
        key: tensor.contiguous().clone()
        for key, tensor in loaded.model.state_dict().items()
        if backbone or not key.startswith("backbone.")
    }
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(folder)


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
    config = type(base.model.config).from_dict(base.model.config.to_dict())
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
    model: MultiTaskModel, tokenizer: Tokenizer, *, name: str, cache: tuple[str, list[Path]] | None = None
) -> Loaded:
    """A `Loaded` for a model built in memory: computes its fingerprints.

    `cache` may name the files that the backbone's weights come from, so that their digest is remembered. Raises
    `ModelError` where tokenizer, window and backbone do not fit each other.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    model.eval()
    with no_panic(name):
        tokenizer.encode_batch(list(_TOKENIZER_PROBE))
        _check_fit(model, tokenizer, name=name)

    def digest() -> str:
        return tensors_digest(model.backbone.state_dict())

    backbone_digest = cached_digest(f"tensors:{cache[0]}", cache[1], digest) if cache else digest()
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        name=name,
        fingerprint=embedding_fingerprint(model.config, model.backbone.config, backbone_digest, tokenizer),
        heads_fingerprint=heads_fingerprint(model),
    )


def embedding_fingerprint(
    config: TagdexConfig, backbone_config: PreTrainedConfig, backbone_digest: str, tokenizer: Tokenizer
) -> str:
    """SHA-256 over all that determines an embedding: weights, architecture, tokenizer, pooling, prefix, window."""
    facts = {
        "backbone": backbone_digest,
        "architecture": {name: getattr(backbone_config, name, None) for name in _ARCHITECTURE},
        "tokenizer": tokenizer_digest(tokenizer),
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
    encodings = tokenizer.encode_batch(list(_TOKENIZER_PROBE), add_special_tokens=True)
    return _json_digest(
        {
            "vocabulary": sorted(tokenizer.get_vocab(with_added_tokens=True).items()),
            "probe": [encoding.ids for encoding in encodings],
        }
    )


def _json_digest(facts: object) -> str:
    canonical = json.dumps(facts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{folder} has no config.json: it is not a model folder") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} must hold a JSON object, not {type(config).__name__}")
    return config


def _load_own(folder: Path, *, name: str) -> Loaded:
    place = str(folder / "config.json")
    files = [folder / WEIGHTS]
    tokenizer_folder = folder
    try:
        config = TagdexConfig.from_dict(_read_config(folder))
        backbone_config = config.backbone_config()
        if config.backbone_source is not None:
            check_types(config)
            tokenizer_folder = _published_folder(config.backbone_source)
            files.append(tokenizer_folder / WEIGHTS)
        available = check_weights(file for file in files if file.is_file())
        layers = getattr(backbone_config, "num_hidden_layers", None)
        check_size(lambda: MultiTaskModel(config), layers=layers, available=available, place=place)
        model = MultiTaskModel(config)
    except ModelError as error:
        raise ModelError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from error
    except (Exception, MemoryError) as error:  # a configuration can break a backbone's constructor in any way
        raise ModelError(f"{place} does not describe a model: {_one_line(error)}") from error
    weights = _read_weights(folder / WEIGHTS)
    if config.backbone_source is not None:
        model.backbone = _load_backbone(str(tokenizer_folder), name=name)
        weights |= {f"backbone.{key}": value for key, value in model.backbone.state_dict().items()}
    _fill(model, weights, path=folder / WEIGHTS)
    return attach(model, _load_tokenizer(tokenizer_folder), name=name, cache=("own", files))


def _load_raw(source: str, *, name: str) -> Loaded:
    """Any Hugging Face encoder: plain concatenation of its last four layers, no heads."""
    if (Path(source) / "adapter_config.json").exists():  # the loader would follow the path to its base model
        raise ModelError(f"{source} holds an adapter: merge it into its base model, and give the folder of the result")
    with quiet_loading(), no_panic(name):
        try:
            backbone_config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            fast = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except Exception as error:  # loaders raise whatever a file makes them raise
            raise ModelError(cannot_load(source, error)) from error
    if not hasattr(fast, "backend_tokenizer"):
        raise ModelError(f"{name} has no fast tokenizer (tokenizer.json), which offsets need")
    files = sorted(Path(source).glob("*.safetensors")) if Path(source).is_dir() else []
    if files:
        _check_raw(backbone_config, check_weights(files), place=str(Path(source) / "config.json"))
    if len(fast.get_vocab().keys() - set(fast.all_special_tokens)) < 2:  # made up by the loader: no file was there
        raise ModelError(f"{name} has no tokenizer: tokenizer.json is missing, or holds nothing but special tokens")
    backbone = _load_backbone(source, name=name)
    config = TagdexConfig(
        encoder_config=backbone_config.to_dict(), max_length=_window(backbone_config, fast.model_max_length)
    )
    model = MultiTaskModel(config)
    model.backbone = backbone
    return attach(model, fast.backend_tokenizer, name=name, cache=("raw", files) if files else None)


def _check_raw(config: PreTrainedConfig, available: int, *, place: str) -> None:
    layers = getattr(config, "num_hidden_layers", None)
    try:
        check_size(lambda: build_backbone(config), layers=layers, available=available, place=place)
    except ModelError:
        raise
    except Exception as error:  # a configuration can break a backbone's constructor in any way
        raise ModelError(f"{place} cannot be loaded: {_one_line(error)}") from error


def _load_backbone(source: str, *, name: str) -> nn.Module:
    """The pretrained encoder, in fp32; every one of its weights must be there."""
    with quiet_loading():
        options: dict[str, Any] = {
            "trust_remote_code": False,
            "use_safetensors": True,
            "dtype": torch.float32,
            "ignore_mismatched_sizes": True,  # they are reported, and refused below
            "output_loading_info": True,
        }
        try:
            try:
                backbone, info = AutoModel.from_pretrained(source, add_pooling_layer=False, **options)
            except TypeError:
                backbone, info = AutoModel.from_pretrained(source, **options)
        except Exception as error:
            raise ModelError(cannot_load(source, error)) from error
    missing = sorted(info["missing_keys"])
    if missing or info["mismatched_keys"]:
        wrong = missing or sorted(str(key[0]) for key in info["mismatched_keys"])
        problem = "lacks" if missing else "has in another shape than config.json says"
        raise ModelError(f"{name} {problem} {len(wrong)} weights of its backbone, such as {wrong[0]}")
    if getattr(backbone.config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder; only encoders can be used")
    for key, tensor in backbone.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(f"{name}: the weight {key} holds values that are not finite")
    return backbone  # type: ignore[no-any-return]


def _load_tokenizer(folder: Path) -> Tokenizer:
    path = folder / TOKENIZER
    if not path.is_file():
        raise ModelError(f"{folder} has no {TOKENIZER}")
    try:
        with no_panic(str(path)):
            return Tokenizer.from_file(str(path))
    except ModelError:
        raise
    except Exception as error:  # the tokenizers library raises plain Exception
        raise ModelError(f"{path} cannot be read: {_one_line(error)}") from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"{path.parent} has no {path.name}; weights in other forms (pickle) are never loaded")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged: {_one_line(error)}") from error


def _fill(model: nn.Module, weights: Mapping[str, Tensor], *, path: Path) -> None:
    """Put the weights into the model; names and shapes must agree exactly."""
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
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise ModelError(f"{path}: {key} holds values that are not finite")
    model.load_state_dict(dict(weights))


def _published_folder(reference: Mapping[str, Any]) -> Path:
    known = PUBLISHED.get(str(reference.get("name")))
    if known is not None and known.sha256 == reference.get("sha256"):
        return find_backbone(known)
    try:
        source = BackboneSource(
            name=str(reference["name"]), revision=str(reference["revision"]), sha256=str(reference["sha256"])
        )
    except KeyError as error:
        raise ModelError(f"backbone_source lacks {error}: it needs name, revision and sha256") from error
    return find_backbone(source)


def _window(config: PreTrainedConfig, tokenizer_limit: int) -> int:
    """256 tokens, or fewer where the backbone's positions end earlier."""
    return min(256, positions_of(config), int(tokenizer_limit))


def positions_of(config: PreTrainedConfig) -> int:
    """How many tokens a backbone can take, special ones included."""
    positions = int(getattr(config, "max_position_embeddings", 0) or 2**31)
    if not getattr(config, "position_biased_input", True):  # DeBERTa with relative positions alone
        return 2**31
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        positions -= int(config.pad_token_id or 0) + 1  # their positions start behind the padding's id
    return positions


def _check_fit(model: MultiTaskModel, tokenizer: Tokenizer, *, name: str) -> None:
    """Raise `ModelError` where the tokenizer, the window and the backbone do not fit each other."""
    config, backbone = model.config, model.backbone.config
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= (entries := int(getattr(backbone, "vocab_size", None) or 2**31)):
        raise ModelError(f"{name}: the tokenizer gives ids up to {largest}, but the backbone knows {entries} entries")
    if config.max_length > (positions := positions_of(backbone)):
        raise ModelError(f"{name}: max_length is {config.max_length}, but the backbone takes {positions} tokens")
    taken = len(tokenizer.encode(config.prefix).ids)
    if config.max_length < taken + MIN_ROOM:
        raise ModelError(
            f"{name}: max_length is {config.max_length}, but special tokens and prefix take {taken} of them, "
            f"and a text needs at least {MIN_ROOM} more"
        )


def cannot_load(source: str, error: Exception) -> str:
    if Path(source).is_dir():
        return f"{source} cannot be loaded: {_one_line(error)}"
    return (
        f"{source} is not a folder here and could not be loaded from the hub or its cache ({_one_line(error)}); "
        "give the folder of a model, or a hub name while there is a network"
    )


def _one_line(error: Exception) -> str:
    line = " ".join(str(error).split())
    return f"{type(error).__name__}: {line[:300]}" if line else type(error).__name__


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No load reports, warnings or bars from the loaders: what matters of them becomes an error here."""
    import huggingface_hub.constants as hub

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    timeouts = hub.HF_HUB_ETAG_TIMEOUT, hub.HF_HUB_DOWNLOAD_TIMEOUT
    http_level = logging.getLogger("huggingface_hub").level
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    hub.HF_HUB_ETAG_TIMEOUT = hub.HF_HUB_DOWNLOAD_TIMEOUT = int(HUB_TIMEOUT)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        logging.getLogger("huggingface_hub").setLevel(http_level)
        hub.HF_HUB_ETAG_TIMEOUT, hub.HF_HUB_DOWNLOAD_TIMEOUT = timeouts
