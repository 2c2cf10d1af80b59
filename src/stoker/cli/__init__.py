"""The command line. Commands import what they need when they run, so that `stoker --help` answers at once."""

from __future__ import annotations


def main() -> None:
    """Run the command line on `sys.argv` and leave with its exit status: 0, 1 (an error), 2 (wrong usage)."""
    from stoker.cli.app import run_app

    run_app()
