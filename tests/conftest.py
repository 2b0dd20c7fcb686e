"""What holds for every test: one thread, and nothing read from or written to the user's own cache of digests."""

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
