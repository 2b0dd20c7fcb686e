"""The examples in docs/SERVICE.md run against a service, and are answered."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")

from serving import listening

from indexer.api import add_documents
from indexer.readers import read_documents
from search.server.problems import TITLES
from search.server.service import Service
from search.server.settings import Limits

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "SERVICE.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```(bash|python)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.usefixtures("default_model_there")
def test_examples_are_answered(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    pytest.importorskip("openai", reason="the package openai is not installed")
    documents = list(read_documents([ROOT / "scripts" / "sample" / "corpus.jsonl"]))[:40]
    add_documents(tmp_path / "sample-index", documents)
    assert len(EXAMPLES) == 5
    printed = []
    with listening(Service({"sample-index": tmp_path / "sample-index"})) as url:
        environment = {**os.environ, "URL": url, "NO_PROXY": "127.0.0.1"}
        for kind, code in EXAMPLES:
            command = ["bash", "-ec", code] if kind == "bash" else [sys.executable, "-c", code]
            done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, "")
            assert "urn:tagdex:problem" not in done.stdout
            printed.append(done.stdout)
    assert '"facets":{"documents":' in printed[1]
    assert '"removed":1' in printed[2]
    assert "('ORG', 'Siemens')" in printed[3]
    assert printed[4].startswith("1536 ")


def test_every_problem_and_every_limit_is_described() -> None:
    for kind in TITLES:
        assert f"`{kind}`" in TEXT, kind
    for limit in Limits.__slots__:
        assert f"`{limit}`" in TEXT, limit
