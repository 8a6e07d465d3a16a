"""`python -m streamsrv`."""

import sys

from streamsrv.cli import main

if __name__ == "__main__":
    sys.exit(main())
