"""Kill training runs with SIGKILL at random moments, resume them, and compare every bit with a run that was left alone.

    python scripts/faults/training.py --kills 20

The run has two phases, heads alone and then all layers, with dropout, distillation and two tasks, on a tiny random
model and made-up texts; a state is written every few steps, so that kills hit the writing as well. Ends with exit code
1 if weights, scores or the log differ in any bit.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

TESTS = Path(__file__).resolve().parents[2] / "tests"
COMPARED = ("model/model.safetensors", "model/config.json", "scores.json", "log.jsonl", "curves.svg")

CONFIGURATION = """
checkpoint_every = 3
[model]
base = "{folder}/base"
[[data]]
task = "class"
path = "{folder}/classes.csv"
dev = 0.2
[[data]]
task = "tags"
path = "{folder}/spans.jsonl"
dev = 0.2
[distill]
weight = 0.1
[[phase]]
train = "heads"
epochs = 4
batch_size = 8
learning_rate = 1e-2
[[phase]]
epochs = 4
batch_size = 8
learning_rate = 1e-3
"""
_TRAIN = "from indexer.cli import main; main()"


@click.command()
@click.option("--kills", default=20, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(kills: int, seed: int) -> None:
    """Kill, resume, compare."""
    sys.path.insert(0, str(TESTS))
    from training import raw, save, write_data

    generator = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, count=200)
        save(raw(), folder / "base")
        (folder / "run.toml").write_text('output = "unused"\n' + CONFIGURATION.format(folder=folder), encoding="utf-8")
        whole = folder / "whole"
        if start(folder, whole).wait() != 0:
            raise click.ClickException("the run that is left alone fails")
        lines = len((whole / "log.jsonl").read_bytes().splitlines())
        killed, finished, differ = 0, 0, 0
        while killed < kills:
            output = folder / f"run-{finished}"
            process = start(folder, output)
            # Somewhere in what is left of the run, with a moment more or less, so that no place is favoured.
            begun = logged(output)
            wanted = begun + generator.randint(1, max(1, lines // 4))
            while process.poll() is None and logged(output) < wanted:
                time.sleep(0.005)
            time.sleep(generator.random() * 0.05)
            if process.poll() is None and killed < kills:
                process.send_signal(signal.SIGKILL)
                process.wait()
                killed += 1
                click.echo(f"kill {killed} at log line {logged(output)} of {lines}", err=True)
                if killed < kills:
                    continue
                process = start(folder, output)
            if process.wait() != 0:
                raise click.ClickException(f"the run in {output} does not go on")
            finished += 1
            for part in COMPARED:
                if (whole / part).read_bytes() != (output / part).read_bytes():
                    click.echo(f"{part} differs")
                    differ += 1
        click.echo(f"{killed} kills, {finished} runs finished, {lines} log lines each, {differ} files differ")
        sys.exit(1 if differ else 0)


def start(folder: Path, output: Path) -> subprocess.Popen[bytes]:
    """A run in a process of its own, with one thread."""
    command = [sys.executable, "-c", _TRAIN, "train", str(folder / "run.toml"), "--output", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def logged(output: Path) -> int:
    """Lines of a run's log."""
    path = output / "log.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


if __name__ == "__main__":
    main()
