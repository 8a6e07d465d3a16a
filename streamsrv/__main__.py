"""`python -m streamsrv`."""

import sys

from streamsrv.cli import entry

if __name__ == "__main__":
    sys.exit(entry())
