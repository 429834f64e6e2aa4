"""`python -m loratune` is the command `loratune`."""

import sys

from loratune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
