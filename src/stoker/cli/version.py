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
    """Print versions, for a bug report.

    Of Stoker and Python; the machine, and the instruction set that the kernels use.
    """
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
