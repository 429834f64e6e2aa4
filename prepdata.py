"""Prepare training, validation and test data: `loratune prepare`, with the same options."""

import sys

try:
    from loratune.cli.main import main
except ModuleNotFoundError:
    sys.exit(
        "loratune is not installed for this Python; run `make setup`, then `.venv/bin/python prepdata.py`"
    )

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
