# A fresh machine needs `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo-run
N_TESTS ?= 2

.PHONY: setup demo test test-all lint type clean
setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

demo: setup  ## train scVI with and without adaptive resampling on the bundled cells, evaluate, draw
	$(BIN)/sctool train scvi --ar --atlas-count 100 --epochs 100 --out $(DEMO) --name ar --force
	$(BIN)/sctool train scvi --no-ar --atlas-count 100 --epochs 100 --out $(DEMO) --name standard --force
	$(BIN)/sctool predict scvi $(DEMO)/checkpoints/scvi/ar --out $(DEMO) --force
	$(BIN)/sctool eval reconstruction --model $(DEMO)/checkpoints/scvi/ar --model $(DEMO)/checkpoints/scvi/standard --out $(DEMO) --name demo --force
	$(BIN)/sctool eval classification --model $(DEMO)/checkpoints/scvi/ar --model $(DEMO)/checkpoints/scvi/standard --out $(DEMO) --name demo --force
	$(BIN)/sctool plot $(DEMO)/checkpoints/scvi/standard $(DEMO)/checkpoints/scvi/ar $(DEMO)/results/scvi/ar $(DEMO)/results/classification/demo $(DEMO)/results/reconstruction/demo

test: setup  ## all but the slow tests, under 8 minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(N_TESTS) --dist worksteal -m "not slow"

test-all: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(N_TESTS) --dist worksteal

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

type: $(VENV)/.dev
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(DEMO) .pytest_cache .mypy_cache .ruff_cache
