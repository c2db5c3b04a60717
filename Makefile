# Each target makes its own environment in .venv; nothing but Python >= 3.11 and make is needed.
PYTHON ?= python3
BIN := .venv/bin
METHOD ?= pica
CONFIGS := $(if $(filter imc_swav,$(METHOD)),configs/imc_swav,configs)

demo: .venv/main  ## cluster scikit-learn's digits, and print the scores beside k-means's; METHOD=imc_swav; ARGS=… adds flags
	$(BIN)/python main.py --cfgs $(CONFIGS)/base.yaml $(CONFIGS)/digits.yaml --seed 0 $(ARGS)

test: .venv/test  ## linters, types and tests; under 10 minutes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: .venv/test  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

torture: .venv/test  ## disks that fail and runs that are killed at every place; an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m torture -s

bench: .venv/main  ## the claims of speed, in short; benchmarks/results/ gets the tables
	for theme in augment step epoch scale startup folder; do $(BIN)/python benchmarks/$$theme.py --short || exit 1; done

api: .venv/docs  ## a page for each public module, from the docstrings; docs/api/index.html
	$(BIN)/python docs/api.py docs/api

.venv/main: pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit("error: Python 3.11 or newer is needed: make PYTHON=…")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/test: .venv/main
	$(BIN)/python -m pip install --quiet -r requirements-test.txt
	touch $@

.venv/docs: .venv/main
	$(BIN)/python -m pip install --quiet -e .[docs]
	touch $@

.PHONY: demo test test-slow torture bench api
