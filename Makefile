# Every target sets up all it needs. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

# What wheels and venv need of the system. Installed where that is possible without asking (Debian, root).
system:
	@need=; $(PYTHON) -c 'import ensurepip' 2>/dev/null || need="$$need python3-venv"; \
	ldconfig -p | grep -q 'libgomp\.so\.1' || need="$$need libgomp1"; \
	command -v openssl >/dev/null || need="$$need openssl"; \
	if [ -n "$$need" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing$$need"; apt-get -qq update && apt-get -qq install --yes --no-install-recommends $$need; \
	  else echo "please install:$$need"; exit 1; fi; fi

$(STAMP): pyproject.toml constraints.txt | system
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed (PYTHON=... chooses another)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

venv: $(STAMP) ## a virtual environment with the tested versions

constraints: ## write constraints.txt from the newest versions that pyproject.toml allows
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --editable '.[dev]'
	{ echo '# Versions a fresh machine gets: what the tests ran against. Written by `make constraints`.'; $(BIN)/pip freeze --exclude-editable; } > constraints.txt
	@touch $(STAMP)

lint: venv ## style, types, import order, generated files
	$(BIN)/ruff check operator tests e2e charts conftest.py
	$(BIN)/ruff format --check operator tests e2e charts conftest.py
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: venv ## fast tests only: no cluster
	$(UNIT_NICE) $(BIN)/pytest -m 'not cluster'

crds: venv ## write crds/ and the chart's copies from the API types
	$(BIN)/wattkeeper crds --output crds
	$(BIN)/python charts/generate.py

docs: venv ## write the reference pages of docs/ from the code
	$(BIN)/wattkeeper reference --output docs

demo: venv ## a day of traffic against a simulated fleet: no cluster, no GPU; writes demo-report/
	$(BIN)/wattkeeper demo

tools: ## build Kubernetes, kwok, Prometheus and Helm for the tests (about ten minutes once)
	@$(PYTHON) e2e/build_tools.py

# Tests on the cluster wait for it most of the time and have clocks to keep: the others run beside them, and give way.
test: venv tools ## all tests: unit, contract and end to end, in three parts side by side
	@echo 'Three parts run side by side; each prints when it ends. `make unit` and `make e2e` show one at work.'
	@$(MAKE) --no-print-directory --jobs=3 --output-sync=target --keep-going unit e2e-parts e2e-whole UNIT_NICE='nice -n 10'

e2e-whole: venv tools
	$(BIN)/pytest -m cluster tests/e2e

e2e-parts: venv tools
	$(BIN)/pytest -m cluster --ignore=tests/e2e

e2e: venv tools ## only the tests that need a cluster
	$(BIN)/pytest -m cluster

bench-scale: venv tools ## what a pass over 1,000 services costs, on a real API server (about eight minutes)
	@$(BIN)/python -m e2e.bench_scale --core 0 $(BENCH)

cluster: venv tools ## leave a real cluster with simulated GPU nodes running; prints the line to use it
	@$(BIN)/python -m e2e.cluster up

cluster-down: venv ## end what `make cluster` started
	@$(BIN)/python -m e2e.cluster down

.PHONY: help system venv constraints lint unit crds docs demo tools test e2e e2e-whole e2e-parts bench-scale cluster cluster-down
