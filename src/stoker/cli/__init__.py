"""The command line. Commands import what they need when they run, so that `stoker --help` answers at once."""

from __future__ import annotations

import os
import sys

INTERRUPTED_STATUS = 130  # 128 + SIGINT, what shells report for a program that Ctrl-C ended


def main() -> None:
    """Run the command line on `sys.argv` and leave with its exit status.

    0, 1 (an error), 2 (wrong usage) or 130 (Ctrl-C, also while the program is still loading).
    """
    try:
        # OpenBLAS, which comes with numpy and is not used, would start a thread for each core: 35 ms.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        from stoker.cli.app import run_app

        run_app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_STATUS)
