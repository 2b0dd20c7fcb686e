"""What holds for every option of both commands."""

from __future__ import annotations

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
