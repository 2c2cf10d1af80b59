"""The command line. Commands import what they need when they run, so that `stoker --help` answers at once."""

from __future__ import annotations

import os


def main() -> None:
    """Run the command line on `sys.argv` and leave with its exit status: 0, 1 (an error), 2 (wrong usage)."""
    # OpenBLAS, which comes with numpy and is not used, would start a thread for each core: 35 ms.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from stoker.cli.app import run_app

    run_app()
