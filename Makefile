# Every target makes what it needs. PYTHON is the interpreter the virtual environment is made with.
PYTHON ?= python3
VENV   := .venv
# Modules compile when they are first imported; most of what lies in these packages never is.
PIP    := $(VENV)/bin/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt

# Without bytecode every command that a test starts would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all check bench tables docs release-bundle clean

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The small install: no torch, about a minute on a fresh machine.
$(VENV)/core: constraints.txt pyproject.toml | $(VENV)/bin/python
	$(PIP) hatchling editables pdqhash  # which is built in isolation, as its own build needs numpy
	$(PIP) --no-build-isolation --editable .
	touch $@

# Everything: the neural models, the tests and the linters.
.venv: $(VENV)/full
$(VENV)/full: $(VENV)/core
	$(PIP) --no-build-isolation --editable ".[dev]"
	touch $@
.PHONY: .venv

demo: $(VENV)/core
	$(VENV)/bin/pgimgsearch demo

# As many processes as cores, and a server each, so not too many.
PYTEST := $(VENV)/bin/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

test: $(VENV)/full
	$(PYTEST) -m "not slow" --ignore tests/reliability  # its libraries take long to import

# With kills, lost databases, a Ray cluster and 100,000 vectors: before a release, and after changes to what they test.
test-all: $(VENV)/full
	$(PYTEST)

check: $(VENV)/full
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/codespell *.md docs pgimgsearch sql
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/python -m pytest -q tests/unit/test_docs.py

bench: $(VENV)/full
	$(VENV)/bin/python -m benchmarks $(BENCH)

# List the tables of the newest revision, from a new database.
tables: $(VENV)/core
	$(VENV)/bin/python -m pgimgsearch.operations.schema_check > migrations/tables.txt

# At a release: freeze sql/ as the functions of its revision.
release-bundle: $(VENV)/core
	$(VENV)/bin/python -m pgimgsearch.database.functions

# Write the catalog and the benchmarks' figures into the documents.
docs: $(VENV)/full
	$(VENV)/bin/python -m pgimgsearch.models.catalog_table
	$(VENV)/bin/python -m benchmarks.document

clean:
	rm -rf $(VENV) dist build benchmarks/results
