# make train: set everything up and train the default task. make test: lint, types, layering, tests.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
FLAGS ?=

.PHONY: train test compare clean

train: .venv/anypo
	$(BIN)/anypo train grpo $(FLAGS)

test: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2
	$(BIN)/anypo verify --all --quick --jobs 2

.venv/pip: constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) torch
	touch $@

.venv/anypo: .venv/pip pyproject.toml
	$(INSTALL) -e ".[text]"
	touch $@

.venv/dev: .venv/pip pyproject.toml
	$(INSTALL) -e ".[dev]"
	touch .venv/anypo $@

clean:
	rm -rf .venv
