"""What is written down is true: the examples run, and print what they say."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def without_figures(text: str) -> str:
    """Scores, sizes and times differ a little between machines."""
    return re.sub(r"[0-9a-f]{32,}|\d[\d.,]*", "#", text)


def test_cli_docs_are_the_commands_own_help() -> None:
    assert (ROOT / "docs" / "CLI.md").read_text(encoding="utf-8") == script("write_cli_docs").cli_docs()


@pytest.mark.usefixtures("default_model_there")
def test_readme_examples_print_what_they_say(tmp_path: Path) -> None:
    examples = script("write_readme_output")
    examples.prepare(tmp_path)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = list(examples.run_examples(readme, tmp_path))
    assert len(blocks) >= 10
    for written, printed in blocks:
        assert without_figures(written) == without_figures(printed)


@pytest.mark.usefixtures("default_model_there")
def test_python_examples_run(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "PYTHON.md").read_text(encoding="utf-8")
    program = "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "3 0 0"
    assert lines[1].startswith("ada ")
    assert lines[3].startswith("document 1 ('mary'): the text is empty")
    assert lines[4] == "['d1', 'd2']"
    assert lines[-1] == "['nobody'] 1 ()"


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    for link in links:
        assert ((ROOT / document).parent / link).exists(), link
