"""Run the examples in README.md and put what they print under them. Run it after a change of the output.

    python scripts/write_readme_output.py

Every line that starts with "$ " in a console block is run by bash, and every python block by Python, all in one new
folder that holds the sample corpus and its index, as it is after scripts/quickstart.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"

BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_examples(readme: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Each example block as it stands, and as it should be by what it printed. Raises where one fails."""
    for match in BLOCK.finditer(readme):
        kind, body = match.groups()
        if kind == "python":
            _run([sys.executable, "-c", body], folder)
            yield match.group(), match.group()
            continue
        commands = [line for line in body.splitlines() if line.startswith("$ ")]
        output = "".join(f"{command}\n{_run(['bash', '-c', command[2:]], folder)}" for command in commands)
        yield match.group(), f"```console\n{output}```"


def prepare(folder: Path) -> None:
    """The state after scripts/quickstart: the sample corpus and its index."""
    shutil.copytree(ROOT / "scripts" / "sample", folder / "scripts" / "sample")
    _run(["indexer", "add", "sample-index", "scripts/sample/corpus.jsonl"], folder)


def _run(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    # `indexer info` warns of an old SQLite, which depends on the machine.
    complaints = [line for line in done.stderr.splitlines() if not line.startswith("Warning: SQLite ")]
    if done.returncode != 0 or complaints:
        raise RuntimeError(f"{command[-1]} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    """Rewrite README.md in place."""
    readme = README.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for old, new in run_examples(readme, Path(folder)):
            readme = readme.replace(old, new)
    README.write_text(readme, encoding="utf-8")


if __name__ == "__main__":
    main()
