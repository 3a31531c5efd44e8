# make quickstart: install and train a first network.  make test: install, check the code, run the quick tests.
# make test-all: the tests that `make test` leaves out (marker `long`: kill storms, whole sweeps, SLURM), and only those.
PYTHON ?= python3
BIN := .venv/bin
# COVERAGE=--cov makes `make test` measure coverage too; the tests then take half as long again.
COVERAGE ?=

.PHONY: setup quickstart test test-all clean

setup: .venv/.installed

.venv/.installed: pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Esper needs Python 3.11 or later; $(PYTHON) is not. Try: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv; the first time takes minutes, PyTorch is large."
	@# Setuptools warns about every editable install.
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: setup
	@$(BIN)/esper-train experiment=quickstart

test: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 --dist worksteal $(COVERAGE) -rs -m "not long"

test-all: setup
	$(BIN)/pytest -n 2 --dist worksteal -rs -m long --ignore=tests/slurm
	@# The tests share one SLURM cluster; without SLURM they skip and say why.
	$(BIN)/pytest -rs tests/slurm

clean:
	rm -rf build dist *.egg-info .coverage .coverage.* htmlcov .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find esper tests -name __pycache__ -type d -prune -exec rm -rf {} +
