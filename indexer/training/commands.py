"""`indexer train` and `indexer evaluate`. Whatever takes long to import is imported inside the commands."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("config", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where relative paths of data start from. Default: the folder of CONFIG.",
)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="In place of CONFIG's own output.")
@click.option(
    "--on-misaligned",
    type=click.Choice(["error", "expand", "drop"]),
    help="What spans do that are not whole words, in all data sets. Default: as CONFIG says (error).",
)
@click.option("--device", metavar="auto|cpu|cuda", help="Where the model is trained. Default: as CONFIG says (auto).")
@click.option("--dry-run", is_flag=True, help="Read the data and report on them, and train nothing.")
def train(
    config: Path, data: Path | None, output: Path | None, on_misaligned: str | None, device: str | None, dry_run: bool
) -> None:
    """Train a model on your own labels, as the TOML file CONFIG says.

    The output folder gets the model, its scores, a log and the curves. A run that was stopped goes on where it was when
    it is started again. docs/TRAINING.md explains the file.

    \b
    Example: indexer train banking77.toml --data datasets/banking77
    """
    from indexer.training.settings import read_config

    settings = read_config(config, root=data, output=output)
    if on_misaligned:
        settings = replace(settings, data=tuple(replace(one, on_misaligned=on_misaligned) for one in settings.data))
    if device:
        settings = replace(settings, device=device)
    if dry_run:
        from indexer.training.loop import look

        for line in look(settings).lines():
            click.echo(line)
        return
    from indexer.training.loop import train as run

    with Progress() as progress:
        result = run(settings, watch=progress)
    if result.report is None:
        click.echo(f"{result.folder.parent}: this run had finished before; nothing is trained")
    for name, score in result.scores.items():
        click.echo(f"{name}: {score:.4f}")
    click.echo(f"{result.folder}")


class Progress:
    """Events of a run on standard error: the report, a bar on a terminal, and a line for each scoring."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._title = ""
        self._losses: dict[str, float] = {}

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __call__(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "report":
            for line in event["report"].lines():
                click.echo(line, err=True)
        elif kind == "states":
            self._show(f"states of {event['set']}", event["step"], event["of"])
        elif kind == "step":
            for name, value in event["losses"].items():
                self._losses[name] = 0.95 * self._losses.get(name, value) + 0.05 * value
            self._show(f"phase {event['phase'] + 1}", event["step"], event["of"])
            if self._bar is not None:
                self._bar.set_postfix_str(", ".join(f"{name} {value:.3f}" for name, value in self._losses.items()))
        elif kind == "scores":
            self._close()
            scores = ", ".join(f"{name} {value:.4f}" for name, value in event["sets"].items())
            mark = " (refused: similarity fell)" if event["refused"] else " (best)" if event["best"] else ""
            place = f"phase {event['phase'] + 1}, step {event['step']:,} of {event['of']:,}"
            click.echo(f"{place}: {scores}, mean {event['mean']:.4f}{mark}", err=True)

    def _show(self, title: str, done: int, of: int) -> None:
        from tqdm import tqdm

        if self._bar is None or self._title != title:
            self._close()
            self._title = title
            self._bar = tqdm(desc=title, total=of, disable=not sys.stderr.isatty(), dynamic_ncols=True, leave=False)
        self._bar.update(done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
