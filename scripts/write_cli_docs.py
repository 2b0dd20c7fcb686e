"""Write docs/CLI.md: the `--help` of every command. Run it after a change of the command lines.

python scripts/write_cli_docs.py
"""

from __future__ import annotations

from pathlib import Path

import click

import indexer.cli
import search.cli
from indexer.command import CONTEXT

TARGET = Path(__file__).resolve().parent.parent / "docs" / "CLI.md"

INTRODUCTION = """# Command lines

Made by `scripts/write_cli_docs.py` from the commands' own `--help`; a test compares.

Every option can also be set in the environment: `INDEXER_<COMMAND>_<OPTION>` and `SEARCH_<COMMAND>_<OPTION>`, for
example `INDEXER_ADD_DEVICE=cpu`. Exit codes: 0 done, 2 usage, 1 any other error, with one line on standard error.
"""


def cli_docs() -> str:
    """The text of docs/CLI.md."""
    parts = [INTRODUCTION]
    for name, group in (("indexer", indexer.cli.cli), ("search", search.cli.cli)):
        parts.append(f"## {name}\n\n{_help(group, name)}")
        parts += [
            f"### {name} {command}\n\n{_help(group.commands[command], f'{name} {command}')}"
            for command in sorted(group.commands)
        ]
    return "\n".join(parts)


def _help(command: click.Command, name: str) -> str:
    names: list[str] = CONTEXT["help_option_names"]
    context = click.Context(command, info_name=name, terminal_width=100, max_content_width=100, help_option_names=names)
    return f"```\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    TARGET.write_text(cli_docs(), encoding="utf-8")
