"""Model folders that somebody else has made: what is checked before anything of them is loaded.

Loading must not hang, fill the memory, or read outside of what was asked for, whatever lies in the folder. So files
must be files, of a size that such files have, and what the configuration describes must not be larger than the weights.
"""

from __future__ import annotations

import base64
import json
import math
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from indexer.errors import ModelError

Built = TypeVar("Built", bound=nn.Module)

MAX_LAYERS = 1_024  # of a backbone; describing more takes minutes, even without weights
MAX_TIMES, MAX_MORE = 2, 2**24  # of the weights there are; what is missing of fewer is named when they are loaded
MAX_JSON_BYTES = 16 * 2**20
MAX_TOKENIZER_BYTES = 256 * 2**20  # a vocabulary of a million entries has some 50 MB

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "added_tokens.json")
_READ = (".json", ".txt", ".model", ".jinja", ".safetensors")
_INDEX = "model.safetensors.index.json"


def check_files(folder: Path) -> None:
    """Raise `ModelError` for a file that is none, as a pipe or a device, one too large, or a shard in another place.

    Links are followed: the hub's cache is made of them.
    """
    for path in sorted(path for path in folder.iterdir() if path.suffix in _READ):
        try:
            status = path.stat()
        except FileNotFoundError:  # a dead link; that something is missing is said where it is needed
            continue
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(status.st_mode):
            if stat.S_ISDIR(status.st_mode):
                continue
            raise ModelError(f"{path} is not a regular file")
        limit = MAX_TOKENIZER_BYTES if path.name in _TOKENIZER_FILES else MAX_JSON_BYTES
        if path.suffix == ".json" and status.st_size > limit:
            raise ModelError(f"{path} has {status.st_size:,} bytes, at most {limit:,} are read")
    if (folder / _INDEX).is_file():
        _check_shards(folder / _INDEX)
    if (folder / _TOKENIZER_FILES[0]).is_file():
        _check_character_maps(folder / _TOKENIZER_FILES[0])


def _check_character_maps(path: Path) -> None:
    """SentencePiece's tables begin with the size of their first part, which the tokenizers library allocates unseen."""
    content = path.read_bytes()
    if b"precompiled_charsmap" not in content:
        return
    try:
        parts = [json.loads(content)]
        while parts:
            part = parts.pop()
            if isinstance(part, dict) and isinstance(table := part.get("precompiled_charsmap"), str):
                table = base64.b64decode(table)
                size = int.from_bytes(table[:4], "little")
                if len(table) < 4 or 4 + size > len(table):
                    raise ModelError(f"{path} has a table of characters of {len(table):,} bytes that names {size:,}")
            parts += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {type(error).__name__}") from error


def _check_shards(path: Path) -> None:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
        wrong = [name for name in names if Path(name).name != name or Path(name).suffix != ".safetensors"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} cannot be read: {type(error).__name__}") from error
    if wrong:
        raise ModelError(f"{path} names {wrong[0]!r}, which is not a safetensors file of this folder")


@contextmanager
def no_panic(place: str) -> Iterator[None]:
    """A panic of the tokenizers library, which is no `Exception` in Python, → `ModelError`."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        line = " ".join(str(error).split())[:300]
        raise ModelError(f"{place}: the tokenizer cannot be used: {line}") from error


def check_weights(files: Iterable[Path]) -> int:
    """How many numbers safetensors files hold, by their headers. Raises `ModelError` for weights that are no floats."""
    total = 0
    for path in files:
        try:
            with safe_open(path, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118 - it is no mapping
                    part = weights.get_slice(name)
                    total += math.prod(part.get_shape())
                    if name.endswith((".weight", ".bias")) and not part.get_dtype().startswith(("F", "BF")):
                        raise ModelError(f"{path}: {name} holds values of type {part.get_dtype()}, not floats")
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"{path} is damaged: {one_line(error)}") from error
    return total


def check_size(build: Callable[[], Built], *, layers: object, available: int, place: str) -> Built:
    """Raise `ModelError` where a model has more layers than any, or would take far more memory than its weights.

    `build` is called where tensors have a shape, but no memory, and its result returned; it may raise whatever a
    configuration makes it raise.
    """
    if isinstance(layers, int) and layers > MAX_LAYERS:
        raise ModelError(f"{place} describes a model of {layers:,} layers, at most {MAX_LAYERS:,} are known of")
    with torch.device("meta"):
        model = build()
    described = sum(parameter.numel() for parameter in model.parameters())
    if described > MAX_TIMES * available + MAX_MORE:
        raise ModelError(f"{place} describes a model of {described:,} weights, but there are {available:,} of them")
    return model


def read_json(path: Path, *, kind: str = "a model") -> dict[str, Any]:
    """The object in a folder's JSON file; `kind` says what the folder is not without it. Raises `ModelError`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path.parent} has no {path.name}: it is not {kind} folder") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} must hold a JSON object, not {type(content).__name__}")
    return content


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name. Raises `ModelError`."""
    if not path.is_file():
        raise ModelError(f"{path.parent} has no {path.name}; weights in other forms (pickle) are never loaded")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """An error of another library: its type and the beginning of its message."""
    line = " ".join(str(error).split())
    return f"{type(error).__name__}: {line[:300]}" if line else type(error).__name__
