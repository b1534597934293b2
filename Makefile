# nnloom: set-up, demonstration, tests. Everything lives in .venv and build/.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The folders that are installed as nnloom.*; mypy does not see them through an editable installation.
PACKAGES := arch boards cli compiler hw runtime sim

.PHONY: help venv demo test test-slow fuzz test-extras lint lock sbom benchmarks models docs site types clean

help:
	@echo "make demo        keyword spotting from model file to bitstream, and spoken words in RTL simulation"
	@echo "make test        the test suite, without its longest runs"
	@echo "make test-slow   the longest runs: more random networks, resets at every cycle of more engines, ..."
	@echo "make fuzz        random networks against LiteRT, for MINUTES=30, from SEED=0"
	@echo "make test-extras each extra alone: a wheel in an environment of its own, on a terminal"
	@echo "make lint        style and types"
	@echo "make benchmarks  measure the four networks, the memory planner and the tools again"
	@echo "make models      measure again what the resource and cost models are checked against; an hour"
	@echo "make lock        resolve the dependencies again: requirements.lock, with hashes"
	@echo "make sbom        what is installed, as a CycloneDX list: build/sbom.json"
	@echo "make docs        regenerate the generated documentation"
	@echo "make site        the documentation as a site: build/site/index.html"

venv: $(READY)

# Versions and hashes of requirements.lock where it is for this computer; elsewhere what pip finds for pyproject.toml.
LOCKED := import sys, platform; sys.exit((sys.version_info[:2], sys.platform, platform.machine()) != ((3, 11), "linux", "x86_64"))

$(READY): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	if $(BIN)/python -c '$(LOCKED)'; then \
	  grep -E '^(pip|setuptools)==' requirements.lock > $(VENV)/first.lock && \
	  $(BIN)/python -m pip install --quiet --require-hashes -r $(VENV)/first.lock && \
	  $(BIN)/python -m pip install --quiet --require-hashes --no-build-isolation -r requirements.lock && \
	  $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .; \
	else \
	  $(BIN)/python -m pip install --quiet --upgrade pip && $(BIN)/python -m pip install --quiet --editable '.[dev]'; \
	fi
	@touch $@

lock: $(READY)
	$(BIN)/python .ci/lock.py

sbom: $(READY)
	mkdir -p build
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON -o build/sbom.json $(BIN)/python
	@echo build/sbom.json

demo: $(READY)
	$(BIN)/python examples/demo.py

fuzz: $(READY)
	$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),30) --seed $(or $(SEED),0) --native-share 0.3

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow' $(PYTEST_ARGUMENTS)

test-slow: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow $(PYTEST_ARGUMENTS)

test-extras: $(READY)
	$(BIN)/python -m pytest tests/cli/test_installed.py $(PYTEST_ARGUMENTS)

# The package as tools see it that do not follow an editable installation.
types:
	mkdir -p build/types/nnloom
	for folder in $(PACKAGES); do ln -sfn ../../../$$folder build/types/nnloom/$$folder; done
	for file in nnloom/*.py; do ln -sfn ../../../$$file build/types/$$file; done

lint: $(READY) types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/types && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml -p nnloom

benchmarks: $(READY)
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/tools.py
	$(BIN)/python benchmarks/cpu.py

models: $(READY)
	$(BIN)/python benchmarks/resources.py
	$(BIN)/python benchmarks/cost_model.py

docs: $(READY)
	$(BIN)/python docs/generate.py

site: $(READY) types
	$(BIN)/python -m pip install --quiet 'mkdocs-material>=9.5,<10' 'mkdocstrings-python>=1.16,<3'
	$(BIN)/python -m mkdocs build --strict --quiet
	@echo build/site/index.html

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
