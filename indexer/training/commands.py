"""`indexer train` and `indexer evaluate`. Whatever takes long to import is imported inside the commands."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from indexer.collector import collect_as_usual


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

    collect_as_usual()
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
        elif kind == "note":
            self._close()
            click.echo(f"phase {event['phase'] + 1}: note: {event['text']}", err=True)
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


@click.command()
@click.argument("model", required=False, metavar="[MODEL]")
@click.option("--compare", nargs=2, metavar="A B", help="Two models in place of one, side by side.")
@click.option(
    "--task",
    type=click.Choice(["class", "tags", "similarity", "retrieval"]),
    required=True,
    help="What the data say, and so what is measured.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="A file as for training; for retrieval a folder with corpus.jsonl, queries.jsonl and qrels.",
)
@click.option(
    "--key",
    "keys",
    envvar="INDEXER_EVALUATE_KEY",
    multiple=True,
    metavar="NAME=VALUE",
    help="How the file is read: any key of [[data]] in a training configuration, as label=intent; may be repeated.",
)
@click.option("--split", default="test", show_default=True, help="Retrieval: which qrels, as qrels/test.tsv.")
@click.option(
    "--pictures", type=click.Path(file_okay=False, path_type=Path), help="Write confusion.svg and reliability.svg here."
)
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda", help="Where the model runs.")
@click.option("--json", is_flag=True, help="Print one JSON object.")
def evaluate(
    model: str | None,
    compare: tuple[str, str] | None,
    task: str,
    data: Path,
    keys: tuple[str, ...],
    split: str,
    pictures: Path | None,
    device: str,
    json: bool,
) -> None:
    """Measure MODEL, a folder or a name, on labelled data; "default" is the default model.

    class: accuracy, macro-F1, calibration error, abstention. tags: strict F1 of spans. similarity: Spearman, or nDCG
    for pairs without scores. retrieval: nDCG@10 and recall@100, exact search, with the extra `eval`. Scores come with
    95 % intervals.

    \b
    Examples: indexer evaluate runs/banking77/model --task class --data test.csv --key label=category
              indexer evaluate --compare default my-model --task retrieval --data scifact
    """
    if (model is None) == (compare is None):
        raise click.UsageError("give either MODEL or --compare A B")
    if keys and task == "retrieval":
        raise click.UsageError("--key is for class, tags and similarity")
    from indexer.model import TextModel
    from indexer.training.evaluation import evaluate as measure
    from indexer.training.evaluation import evaluate_retrieval, write_pictures
    from indexer.training.results import Comparison, Result

    names = [str(model)] if compare is None else list(compare)
    found = []
    if task == "retrieval":
        judged = judged_queries(data, split)
        for name in names:
            found.append(evaluate_retrieval(TextModel.load(name, device=device), judged))
    else:
        from indexer.training.sets import read_examples
        from indexer.training.settings import data_settings

        settings = data_settings(task, data, keys)
        examples = read_examples(settings, data)
        for name in names:
            found.append(measure(TextModel.load(name, device=device), settings, examples))
    if compare is None:
        result = Result.of(names[0], found[0])
        click.echo(result.json() if json else "\n".join(result.lines()))
    else:
        comparison = Comparison.of(names, found)
        click.echo(comparison.json() if json else "\n".join(comparison.lines()))
    if pictures is not None:
        for name, evaluation in zip(("",) if compare is None else ("first", "second"), found, strict=True):
            for path in write_pictures(evaluation, pictures / name):
                click.echo(f"{path}", err=True)


def judged_queries(folder: Path, split: str) -> Any:
    """A retrieval set in BEIR's form. Raises `InputError`."""
    from indexer.errors import InputError
    from indexer.training.data import read_beir

    try:
        return read_beir(folder, split=split)
    except OSError as error:
        raise InputError(error.strerror or str(error), source=str(error.filename)) from error
