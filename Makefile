# SPDX-License-Identifier: Apache-2.0
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
CODE := schemas policies statemachine backends nodeexec reconciler localcluster

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/installed: pyproject.toml
	@echo "==> Python packages into $(VENV) (about a minute, once)"
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	  echo "    $(PYTHON) has no venv module; installing python3.11-venv"; \
	  apt-get update -qq && apt-get install -y -qq python3.11-venv; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

.PHONY: venv
venv: $(VENV)/installed ## Install podsnap and its tools into .venv

.PHONY: tools
tools: ## Build the pinned Kubernetes, containerd and gVisor (10 minutes, once)
	@$(PYTHON) localcluster/toolchain.py build

.PHONY: tools-gitops
tools-gitops: ## Build the pinned Flux, Argo CD and others for the tests (8 minutes, once)
	@$(PYTHON) localcluster/toolchain.py build gitops
	@$(PYTHON) localcluster/toolchain.py build telemetry

.PHONY: tools-storage
tools-storage: ## Build the pinned server that speaks Cloud Storage's protocol (1 minute, once)
	@$(PYTHON) localcluster/toolchain.py build storage

# BUCKET=gcs: buckets of a server that speaks Cloud Storage's protocol, instead of directories.
BUCKET ?=

.PHONY: demo
demo: venv tools $(if $(filter gcs,$(BUCKET)),tools-storage) ## A slow Pod, saved and restored on a real local cluster
	@$(BIN)/python examples/demo.py $(if $(BUCKET),--bucket $(BUCKET))

.PHONY: demo-down
demo-down: venv ## Remove everything that the demo made
	@$(BIN)/podsnap local down
	@rm -rf build/demo

.PHONY: check
check: venv ## Lint, types, layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo 2>/dev/null | tail -n 12 || $(BIN)/lint-imports

.PHONY: format
format: venv ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix --quiet .

.PHONY: test
test: venv tools tools-gitops tools-storage check ## Run all tests
	@$(BIN)/pytest

.PHONY: test-gitops
test-gitops: venv tools tools-gitops ## Run the tests with the real Flux and Argo CD
	@$(BIN)/pytest tests/gitops

.PHONY: test-quick
test-quick: venv ## Run the tests that need no cluster
	@$(BIN)/pytest -m "not cluster" tests/pure

.PHONY: conformance
conformance: venv tools ## Show that each of the contract's 33 behaviours holds, as a table
	@$(BIN)/python -m pytest -p tests.contract.conformance

.PHONY: bench
bench: venv tools ## Measure, and print ratios within one run
	@$(BIN)/python bench/run.py

.PHONY: docs
docs: venv ## Generate the reference pages and diagrams from the code
	@$(BIN)/python docs/generate.py
