"""Hugging Face models as they are published: finding and loading them, and whether their parts fit each other.

Safetensors only, no code of their own, and every weight must be there. Used for backbones and for cross-encoders.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from torch import nn

from indexer import bert
from indexer.errors import ModelError
from indexer.finite import all_finite
from indexer.folders import check_files, check_size, check_weights, no_panic, one_line, read_json, read_weights
from indexer.heads import MultiTaskModel
from indexer.sources import HUB_TIMEOUT, MINILM, BackboneSource, find_backbone

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PUBLISHED = {source.name: source for source in (MINILM,)}

TOKENIZER = "tokenizer.json"
MIN_ROOM = 8  # tokens of text in a window beside special tokens and prefix: more than one character ever takes

# How the loaders are called: fp32 from safetensors, no code of the folder's, and a report of what was missing.
LOADING: dict[str, Any] = {
    "trust_remote_code": False,
    "use_safetensors": True,
    "dtype": torch.float32,
    "ignore_mismatched_sizes": True,  # they are reported, and refused
    "output_loading_info": True,
}


def find_folder(name: str) -> Path | None:
    """The folder of this name, its files checked; `None` for a hub name. Raises `ModelError` for what is neither."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        check_files(folder)
        return folder
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"{name} is not a model folder: give a folder with config.json, or a hub name")
    return None


def published_folder(reference: Mapping[str, Any]) -> Path:
    """The folder of a configuration's `backbone_source`, the hash of its weights checked. Raises `ModelError`."""
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


def load_parts(source: str, *, name: str) -> tuple[PreTrainedConfig, Any]:
    """Configuration and fast tokenizer of a model by folder or hub name. Raises `ModelError`."""
    if (Path(source) / "adapter_config.json").exists():  # the loader would follow the path to its base model
        raise ModelError(f"{source} holds an adapter: merge it into its base model, and give the folder of the result")
    from transformers import AutoConfig, AutoTokenizer

    with quiet_loading(), no_panic(name):
        try:
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            fast = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except Exception as error:  # loaders raise whatever a file makes them raise
            raise ModelError(cannot_load(source, error)) from error
    if not hasattr(fast, "backend_tokenizer"):
        raise ModelError(f"{name} has no fast tokenizer (tokenizer.json), which offsets need")
    return config, fast


def check_folder_size(source: str, config: PreTrainedConfig, build: Callable[[], nn.Module]) -> list[Path]:
    """The safetensors files of a folder, none of a hub name.

    Raises `ModelError` where the model that `build` makes by its configuration would be far larger than they are.
    """
    files = sorted(Path(source).glob("*.safetensors")) if Path(source).is_dir() else []
    if files:
        layers, available = getattr(config, "num_hidden_layers", None), check_weights(files)
        place = str(Path(source) / "config.json")
        try:
            check_size(build, layers=layers, available=available, place=place)
        except ModelError:
            raise
        except Exception as error:  # a configuration can break a model's constructor in any way
            raise ModelError(f"{place} cannot be loaded: {one_line(error)}") from error
    return files


def load_backbone(source: str, *, name: str) -> nn.Module:
    """The pretrained encoder, in fp32; every one of its weights must be there. Raises `ModelError`."""
    backbone = _load_bert(Path(source)) or _load_any(source, name=name)
    check_finite(backbone, name=name)
    return backbone


def _load_bert(folder: Path) -> nn.Module | None:
    """A folder's BERT, `None` where there is none, or another form of it than one file with these weights.

    Whatever transformers would read in a way of its own is left to it: other files, old names, one name twice.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        return None
    content = read_json(folder / "config.json")
    if (config := bert.reads(content)) is None or "transformers_weights" in content:
        return None
    read = read_weights(path)
    weights = {name.removeprefix("bert."): tensor for name, tensor in read.items()}
    if len(weights) < len(read) or any(name.endswith((".gamma", ".beta")) for name in weights):
        return None
    with torch.device("meta"):
        backbone = bert.BertModel(config)
    expected = backbone.state_dict()
    if any(key not in weights or weights[key].shape != tensor.shape for key, tensor in expected.items()):
        return None
    # In memory of their own, as those that were read may lie in the file.
    backbone.load_state_dict({key: weights[key].to(torch.float32, copy=True) for key in expected}, assign=True)
    return backbone


def _load_any(source: str, *, name: str) -> nn.Module:
    from transformers import AutoModel

    with quiet_loading():
        try:
            try:
                backbone, info = AutoModel.from_pretrained(source, add_pooling_layer=False, **LOADING)
            except TypeError:
                backbone, info = AutoModel.from_pretrained(source, **LOADING)
        except Exception as error:
            raise ModelError(cannot_load(source, error)) from error
    missing = sorted(info["missing_keys"])
    if missing or info["mismatched_keys"]:
        wrong = missing or sorted(str(key[0]) for key in info["mismatched_keys"])
        problem = "lacks" if missing else "has in another shape than config.json says"
        raise ModelError(f"{name} {problem} {len(wrong)} weights of its backbone, such as {wrong[0]}")
    if getattr(backbone.config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder; only encoders can be used")
    return _as_own(backbone)


def _as_own(backbone: nn.Module) -> nn.Module:
    """A BERT of transformers as one of ours; any other model itself."""
    config = bert.reads(backbone.config.to_dict())  # type: ignore[union-attr, operator]
    if config is None:
        return backbone
    own = bert.BertModel(config)
    expected = own.state_dict()
    own.load_state_dict({key: tensor for key, tensor in backbone.state_dict().items() if key in expected})
    return own


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a folder's tokenizer.json, which neither cuts nor pads. Raises `ModelError`."""
    path = folder / TOKENIZER
    if not path.is_file():
        raise ModelError(f"{folder} has no {TOKENIZER}")
    try:
        with no_panic(str(path)):
            tokenizer = Tokenizer.from_file(str(path))
    except ModelError:
        raise
    except Exception as error:  # the tokenizers library raises plain Exception
        raise ModelError(f"{path} cannot be read: {one_line(error)}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def check_finite(model: nn.Module, *, name: str) -> None:
    """Raise `ModelError` where a weight is not finite."""
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not all_finite(tensor):
            raise ModelError(f"{name}: the weight {key} holds values that are not finite")


def window_of(config: bert.BertConfig | PreTrainedConfig, tokenizer_limit: int) -> int:
    """256 tokens, or fewer where the backbone's positions or the tokenizer's limit end earlier."""
    return min(256, positions_of(config), int(tokenizer_limit))


def positions_of(config: bert.BertConfig | PreTrainedConfig) -> int:
    """How many tokens a backbone can take, special ones included."""
    positions = int(getattr(config, "max_position_embeddings", 0) or 2**31)
    if not getattr(config, "position_biased_input", True):  # DeBERTa with relative positions alone
        return 2**31
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        positions -= int(config.pad_token_id or 0) + 1  # their positions start behind the padding's id
    return positions


def check_fit(model: MultiTaskModel, tokenizer: Tokenizer, *, name: str) -> None:
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
    """In one line, why a loader failed, and what to give instead."""
    if Path(source).is_dir():
        return f"{source} cannot be loaded: {one_line(error)}"
    return (
        f"{source} is not a folder here and could not be loaded from the hub or its cache ({one_line(error)}); "
        "give the folder of a model, or a hub name while there is a network"
    )


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No load reports, warnings or bars from the loaders: what matters of them becomes an error here."""
    import huggingface_hub.constants as hub
    from transformers.utils import logging as transformers_logging

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
