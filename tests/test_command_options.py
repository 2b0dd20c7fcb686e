"""What holds for every option of both commands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from indexer.cli import cli as indexer_cli
from search.cli import cli as search_cli


def options() -> Iterator[tuple[str, str, click.Option]]:
    for name, group in (("indexer", indexer_cli), ("search", search_cli)):
        for command in group.commands.values():
            for parameter in command.params:
                if isinstance(parameter, click.Option):
                    yield name, str(command.name), parameter


@pytest.mark.parametrize(
    ("name", "command", "option"),
    [pytest.param(*found, id=f"{found[0]} {found[1]} {max(found[2].opts, key=len)}") for found in options()],
)
def test_the_environment_variable_of_an_option_is_called_as_its_flag(
    name: str, command: str, option: click.Option
) -> None:
    flag = max(option.opts, key=len).lstrip("-").replace("-", "_")
    wanted = f"{name}_{command}_{flag}".upper()
    if option.envvar is not None:
        assert option.envvar in (wanted, wanted.removesuffix("S"))
    else:
        assert f"{name}_{command}_{option.name}".upper() == wanted  # what click itself makes of it


@pytest.mark.parametrize("found", [pytest.param(found, id=f"{found[0]} {found[1]}") for found in options()])
def test_every_option_says_what_it_does(found: tuple[str, str, click.Option]) -> None:
    assert found[2].help


@pytest.mark.parametrize(("before", "after"), [(None, "64"), ("7", "7")])
def test_commands_keep_few_compiled_operations_unless_told_otherwise(before: str | None, after: str) -> None:
    program = """
import os, click
from indexer.command import run

show = click.command("show")(lambda: print(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]))
run(click.Group(commands=[show]), name="x")
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ONEDNN")}
    if before is not None:
        environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = before
    command = [sys.executable, "-c", program, "show"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == after
