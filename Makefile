# A working day. `make` alone lists the targets.
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help setup quickstart test lint types ci

help:  ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

setup:  ## Make .venv with everything the tests need
	python3 -m venv .venv
	$(BIN)/pip install -c constraints.txt -e ".[test]"

quickstart:  ## Compare five mixtures on the bundled texts
	$(BIN)/jaxmix quickstart

test:  ## Run the tests; only some: make test ARGS=tests/core
	$(BIN)/pytest -n auto --dist loadfile $(ARGS)

lint:  ## Check and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types:  ## Check the types
	$(BIN)/mypy

ci:  ## Do what CI does, in a fresh environment
	.ci/run
