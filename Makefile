# Every target sets up .venv by itself. It needs git, make and Python >= 3.11; nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo demo-seeds test check bench bench-precisions bench-methods bench-hashing bench-power serve clean

help:
	@echo "make demo         train two tiny model pairs, start the service, audit both over HTTP, remediate the one that fails"
	@echo "make demo-seeds   the same for three seeds, with the results of each"
	@echo "make test         everything that CI runs: check, and all tests"
	@echo "make check        ruff, mypy, import rules, the state diagrams"
	@echo "make bench        benchmarks (not part of test)"
	@echo "make bench-precisions   the demo's pairs at every technique of the paper: what is retained, technique x bits"
	@echo "make bench-methods      six losses, SURE, LoRA and the control on the tiny world, three seeds (about an hour)"
	@echo "make bench-hashing      what it costs to hash a checkpoint while it is read"
	@echo "make bench-power        what an audit can tell at 20, 100 and 500 items (a few minutes)"
	@echo "make serve        the embedded service on http://127.0.0.1:8321, reading from this directory"

$(READY): pyproject.toml constraints.txt app/cli/lethe
	@$(PYTHON) -c 'import sys; sys.exit("Lethe needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Use make PYTHON=/path/to/python3.11") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt "$$(grep '^torch==' constraints.txt)" -e '.[worker,gptqmodel,torchao,dev]'
	@touch $@

demo: $(READY)
	@$(BIN)/lethe demo

demo-seeds: $(READY)
	@$(BIN)/lethe demo --seed 0 --seed 1 --seed 2

test: check
	$(BIN)/pytest -n 2 --dist loadfile

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m app.database.diagram --check
	$(BIN)/python -m app.catalog.methods_table --check

bench: $(READY)
	$(BIN)/python -m tests.bench

bench-precisions: $(READY)
	@$(BIN)/lethe demo --out demo-output/precisions --plan rtn-int8,gptq-int8,bnb-int8,rtn-int4,gptq-int4,gptq-int4@retain,gptq-int4@forget,awq-int4,awq-int4@retain,awq-int4@forget,bnb-nf4,bnb-fp4

bench-methods: $(READY)
	$(BIN)/python -m tests.bench.methods

bench-hashing: $(READY)
	@$(BIN)/python -m tests.bench.hashing

bench-power: $(READY)
	@$(BIN)/python -m tests.bench.power

serve: $(READY)
	@$(BIN)/lethe dev

clean:
	rm -rf $(VENV) demo-output .mypy_cache .ruff_cache .pytest_cache
