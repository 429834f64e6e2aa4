# The two commands of the README. Each makes .venv if there is none; `make setup` does only that.
# The first Python that is new enough; another one: make PYTHON=/path/to/python3
# Linux: torch without CUDA where there is no NVIDIA GPU; otherwise: make TORCH=cuda (or cpu, or the URL of an index)
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3; do \
	if $$python $(NEW_ENOUGH) 2>/dev/null; then echo $$python; break; fi; done)
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: quickstart test test-slow test-lowest test-newest lint setup find-python choose-torch clean

quickstart: setup
	$(BIN)/loratune quickstart

# Two processes, a file's tests in one of them: they share what it makes first.
test: setup lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow or not slow"

# With the lowest or the newest versions that pyproject.toml allows, in .venv-lowest or .venv-newest.
test-lowest test-newest: test-%: find-python
	$(PYTHON) tools/environment.py .venv-$* --versions $* $(if $(TORCH),--torch "$(TORCH)")
	.venv-$*/bin/python -m pytest -n 2 --dist loadfile

# Without a cache: a moved file changes which imports of other files are ours.
lint: setup
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

setup: $(INSTALLED)

$(INSTALLED): requirements.txt pyproject.toml tools/environment.py $(if $(TORCH),choose-torch) \
	$(if $(wildcard $(BIN)/python),,find-python)
	$(or $(wildcard $(BIN)/python),$(PYTHON)) tools/environment.py .venv $(if $(TORCH),--torch "$(TORCH)")
	touch $(INSTALLED)

# So that a choice counts where all is installed, too.
choose-torch:

find-python:
	@$(PYTHON) $(NEW_ENOUGH) 2>/dev/null || { \
	echo "No Python 3.11 or newer is found; install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }

clean:
	rm -rf .venv .venv-lowest .venv-newest
