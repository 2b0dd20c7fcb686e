"""What both command lines share: how errors end a command, and the options of every command with a model."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar

import click
from click.exceptions import NoArgsIsHelpError

from indexer.collector import collect_rarely
from indexer.errors import TagdexError

F = TypeVar("F", bound=Callable[..., Any])

# oneDNN, which computes the model on a CPU, compiles its operations for each shape of a batch, and keeps 1,024 of them
# otherwise: 100 MB and more, where so many are enough to be as fast.
COMPILED_OPERATIONS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def run(group: click.Group, *, name: str) -> NoReturn:
    """Run a command line: 0 done, 2 usage, 1 any other error, with one line on stderr and no traceback.

    With TAGDEX_DEBUG=1 in the environment an error that nobody foresaw shows its traceback.
    """
    _open_closed_streams()
    os.environ.setdefault(*COMPILED_OPERATIONS)
    collect_rarely()
    try:
        code = group.main(prog_name=name, standalone_mode=False)
    except NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see '{context.command_path} --help')" if context is not None else ""
        click.echo(f"Error: {one_line(error.format_message())}{hint}", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("stopped; what was acknowledged before is kept")
    except TagdexError as error:
        _fail(str(error))
    except BrokenPipeError:
        # The reader of our output has gone, as `| head` does; nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except MemoryError:
        _fail("out of memory: add fewer or shorter texts at once, or pass a smaller --batch-tokens")
    except OSError as error:
        _fail(f"{error.filename or 'system'}: {error.strerror or error}")
    except Exception as error:
        if os.environ.get("TAGDEX_DEBUG"):
            raise
        message = " ".join(str(error).split())[:500]
        _fail(f"unexpected {type(error).__name__}: {message} (TAGDEX_DEBUG=1 shows where; please report it)")
    sys.exit(code if isinstance(code, int) else 0)


def _open_closed_streams() -> None:
    """Send what is written to a closed standard output or error to nowhere; Python has `None` in its place."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # for as long as the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _fail(message: str) -> NoReturn:
    click.echo(f"Error: {one_line(message)}", err=True)
    sys.exit(1)


def counted(count: int, what: str) -> str:
    """A number with its noun, which takes an s in the plural.

    >>> counted(1, "document"), counted(2000, "document")
    ('1 document', '2,000 documents')
    """
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def one_line(message: str) -> str:
    """A message with control characters made visible, so that it stays one line and cannot steer a terminal."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in message
    )


def say_missing_fields(names: Iterable[str]) -> None:
    """Say on standard error which fields of a filter no document has: a mistyped name makes every comparison false."""
    for name in names:
        click.echo(f"no document has the field {one_line(name)}", err=True)


def options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator; `--help` shows them in this order."""

    def decorate(command: F) -> F:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def model_options(command: F) -> F:
    """--model and --device, of a command with an index."""
    return _model_options("the index's own model, else the default model")(command)


def text_model_options(command: F) -> F:
    """--model and --device, of a command that has texts and no index."""
    return _model_options("the default model")(command)


def _model_options(default: str) -> Callable[[F], F]:
    return options(
        click.option(
            "--model",
            metavar="NAME_OR_PATH",
            help=f"A model folder or a Hugging Face encoder. Default: {default}.",
        ),
        click.option(
            "--device",
            default="auto",
            show_default=True,
            metavar="auto|cpu|cuda",
            help="Where the model runs; auto takes a GPU where there is one.",
        ),
    )
