# Every target installs what it needs. `make demo` and `make test` work from a bare clone.
PYTHON ?= python3
VENV := .venv
ENGINES ?= $(HOME)/.cache/limbeck/engines
DIST ?= dist
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test test-slow test-browser test-cluster test-chaos test-engines test-peers named-checkout smollm2 context-distillation retokenized check lint types floors benchmark bench-full docs dist clean

help:            ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

demo: $(VENV)/demo     ## distil a tiny model on this machine, in minutes
	$(BIN)/limbeck demo

test: $(VENV)/test     ## the default tests: no network, under ten minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: $(VENV)/test     ## tests that take minutes each: the whole demo, every command in the documentation, all architectures
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow

test-browser: $(VENV)/browser     ## the run page in a headless Chromium; installs it on Debian, as root
	@command -v chromium chromium-browser google-chrome >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq chromium chromium-driver >/dev/null; } || { echo "make test-browser needs Chromium and ChromeDriver. On Debian or Ubuntu: sudo apt-get install chromium chromium-driver" >&2; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/browser

test-chaos: $(VENV)/test     ## faults between real runs and real servers, and in run folders; under eight minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m chaos tests/chaos

test-cluster: $(VENV)/test     ## fleets of real processes over a real Ray, and kills in every phase; under ten minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster tests/cluster

test-engines: $(VENV)/test     ## real SGLang and vLLM on this machine: 6 GB of downloads the first time
	scripts/engines/install_sglang.sh $(ENGINES)/sglang
	scripts/engines/install_vllm.sh $(ENGINES)/vllm
	LIMBECK_ENGINES=$(ENGINES) $(BIN)/python -m pytest -m engines --durations=0 tests/engines_live

test-peers: named-checkout $(VENV)/test     ## the drop-ins inside slime's and miles's own code: LIMBECK_SLIME and LIMBECK_MILES name your checkouts
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m peers -rs tests/peers

named-checkout:
	@[ -n "$$LIMBECK_SLIME$$LIMBECK_MILES" ] || { echo "make test-peers runs the code of your checkouts, and none is named. For example:" >&2; echo "  git clone https://github.com/THUDM/slime ../slime && LIMBECK_SLIME=../slime make test-peers" >&2; echo "  git clone https://github.com/radixark/miles ../miles && LIMBECK_MILES=../miles make test-peers" >&2; exit 1; }

smollm2: $(VENV)/smollm2     ## prune a real chat model and heal it against its original, in half an hour
	$(BIN)/python scripts/smollm2/prepare.py
	$(BIN)/limbeck train recipes/smollm2.toml
	$(BIN)/python scripts/smollm2/compare.py --healed runs/smollm2/model

retokenized: $(VENV)/test     ## a student with another tokenizer than its teacher, in ten minutes
	$(BIN)/python scripts/make_other_tokenizer.py
	$(BIN)/limbeck train recipes/retokenized.toml

context-distillation: $(VENV)/smollm2     ## teach a real chat model its system prompt, in minutes
	$(BIN)/python scripts/smollm2/prepare.py
	$(BIN)/limbeck train recipes/context-distillation.toml

check: lint types floors test     ## what every change must pass

lint: $(VENV)/dev     ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev     ## strict types
	$(BIN)/mypy

floors: $(VENV)/dev     ## the import contract: imports go down only
	$(BIN)/lint-imports

benchmark: $(VENV)/test     ## loss and training step against materialised logits and TRL, quickly; downloads TRL
	$(BIN)/python benchmarks/loss.py --quick
	$(BIN)/python benchmarks/step.py --quick

bench-full: $(VENV)/test     ## the figures of docs/concepts/performance.md: an hour on two cores, 16 GB
	$(BIN)/python benchmarks/loss.py
	$(BIN)/python benchmarks/loss.py --large
	$(BIN)/python benchmarks/loss.py --scaling
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/step.py

docs: $(VENV)/docs     ## this documentation as a site, in site/: open site/index.html, no server needed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

dist: $(VENV)/dist     ## a wheel and an sdist in dist/, checked
	rm -f $(DIST)/limbeck-*
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m build --outdir $(DIST)
	$(BIN)/python -m twine check --strict $(DIST)/*
	$(BIN)/python scripts/check_dist.py $(DIST)

clean:           ## remove the virtual environment and caches, not runs or models
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# One virtual environment; a stamp for each set of extras that has been installed into it.
$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Limbeck needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[cpu]'
	@touch $@

$(VENV)/test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/browser: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[browser]'
	@touch $@

$(VENV)/smollm2: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[gguf,cpu]'
	@touch $@

$(VENV)/docs: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[docs]'
	@touch $@

$(VENV)/dist: constraints.txt | $(BIN)/python
	$(PIP) build twine
	@touch $@

$(VENV)/dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[dev]'
	@touch $@
