"""`python -m stoker` is the command `stoker`."""

import sys

if __name__ == "__main__":
    try:
        from stoker.cli import main
    except KeyboardInterrupt:
        sys.exit(130)  # what stoker.cli.INTERRUPTED_STATUS says, which was not imported
    main()
