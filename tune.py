"""Train a LoRA adapter on the prepared data: `loratune train`, with the same options."""

import sys

try:
    from loratune.cli.main import main
except ModuleNotFoundError:
    sys.exit("loratune is not installed for this Python; run `make setup`, then `.venv/bin/python tune.py`")

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
