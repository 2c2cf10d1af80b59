"""The commands of `stoker`, and the border where an exception becomes one line and an exit status."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from dataclasses import dataclass
from typing import Annotated

import typer

from stoker import __version__
from stoker.api.errors import StokerError
from stoker.cli import INTERRUPTED_STATUS
from stoker.cli.bench import BenchCommand, bench
from stoker.cli.inspect import inspect
from stoker.cli.list import list_models
from stoker.cli.output import point_at_nothing, prepare_streams, say
from stoker.cli.pull import pull
from stoker.cli.run import run
from stoker.cli.serve import serve
from stoker.cli.train_draft import train_draft
from stoker.cli.version import version

# What a full or broken device answers to a write; files are opened by name, and their errors carry it.
_WRITE_FAILURES = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})


@dataclass
class _Border:
    """What the outermost frame must know of the options: made by `run_app`, written by the callback below."""

    debug: bool = False


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stoker {__version__}")
        raise typer.Exit


def build_app() -> typer.Typer:
    """The typer application with every command. Plain help: loading rich for it would double the start."""
    app = typer.Typer(
        name="stoker",
        help="Run open-weight language models exactly and fast.",
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def options(
        context: typer.Context,
        debug: Annotated[
            bool,
            typer.Option("--debug", envvar="STOKER_DEBUG", help="Show a traceback when something fails."),
        ] = False,
        _version: Annotated[
            bool,
            typer.Option(
                "--version", callback=_print_version, is_eager=True, help="Print the version and leave."
            ),
        ] = False,
    ) -> None:
        if isinstance(context.obj, _Border):
            context.obj.debug = debug

    for name, command in (
        ("run", run),
        ("pull", pull),
        ("list", list_models),
        ("inspect", inspect),
        ("serve", serve),
        ("train-draft", train_draft),
        ("version", version),
    ):
        app.command(name)(command)
    app.command("bench", cls=BenchCommand)(bench)  # its first word may say what to measure
    return app


def run_app() -> None:
    """Run the application on `sys.argv`; always ends in SystemExit.

    A `StokerError` is one line on stderr. Anything else is a bug of ours and says so, with the traceback
    only under --debug: a user of the command line cannot do anything with it.
    """
    border = _Border(debug=bool(os.environ.get("STOKER_DEBUG")))
    try:
        try:
            prepare_streams()
            build_app()(prog_name="stoker", obj=border)
        finally:
            sys.stdout.flush()  # here, where a failing write becomes one line, not when Python exits
    except StokerError as error:
        if border.debug:
            traceback.print_exc()
        say(f"error: {error}")
        sys.exit(1)
    except ImportError as error:
        # The native core is missing, or refuses STOKER_TARGET with a message of its own.
        if border.debug:
            traceback.print_exc()
        missing = "_native" in str(error)
        say(f"error: {error}" + (" (hint: build the native core: pip install .)" if missing else ""))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_STATUS)
    except BrokenPipeError:
        # The reader of our output went away (`stoker list | head -1`). Python would complain once more when
        # it flushes stdout at exit, so stdout is pointed at nothing first.
        point_at_nothing(sys.stdout)
        sys.exit(1)
    except MemoryError as error:
        if border.debug:
            traceback.print_exc()
        details = f": {error}" if str(error) else ""
        say(f"error: not enough memory{details} (hint: a smaller model or --context needs less)")
        sys.exit(1)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _WRITE_FAILURES and error.filename is None:
            point_at_nothing(sys.stdout)
            say(f"error: cannot write the output: {error.strerror}")
            sys.exit(1)
        if border.debug:
            traceback.print_exc()
        say(f"internal error: {type(error).__name__}: {error} (hint: STOKER_DEBUG=1 shows where)")
        sys.exit(1)
