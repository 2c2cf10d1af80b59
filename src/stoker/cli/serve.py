"""`stoker serve`: the place of a command that people look for, until it is there."""

from __future__ import annotations

import typer

from stoker.cli.output import say

NOT_HERE_STATUS = 2  # as for any other command that is not known


def serve() -> None:
    """Not in this release: says so and exits with status 2.

    The OpenAI-compatible server comes with the next release.
    """
    say("error: the OpenAI-compatible server comes with the next release (hint: until then stoker run MODEL)")
    raise typer.Exit(NOT_HERE_STATUS)
