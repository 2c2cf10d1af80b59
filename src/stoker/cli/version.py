"""`stoker version`: what is running here, for a bug report."""

from __future__ import annotations

import platform
import sys
from typing import Annotated

import typer

from stoker import __version__
from stoker.cli.output import print_json


def version(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the versions of Stoker and Python, the machine, and the CPU target in use."""
    from stoker.cli.compose import native_target

    facts = {
        "stoker": __version__,
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "target": native_target(),
    }
    if as_json:
        print_json(facts)
    else:
        for name, value in facts.items():
            print(f"{name:10}{value}")
