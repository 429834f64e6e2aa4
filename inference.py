"""Let the base and the tuned model answer the same prompts: `loratune compare`, with the same options."""

import sys

try:
    from loratune.cli.main import main
except ModuleNotFoundError:
    sys.exit(
        "loratune is not installed for this Python; run `make setup`, then `.venv/bin/python inference.py`"
    )

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
