# Builds, tests and checks drsdb. Needs Rust, Python 3.11 or newer, make and a C compiler; all else comes from crates.io
# and PyPI. `make help` lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# Outside the work tree, so that every clone builds on what another has compiled.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/drsdb/target
CARGO ?= cargo
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3.14 python3,$(shell command -v $(name))))
# Exact versions, as Cargo.lock and requirements.txt have them.
LOCKED := --locked

VENV := .venv
VENV_READY := $(VENV)/.ready
BIN := $(CURDIR)/$(VENV)/bin
# As seen from client-py, whose configuration holds for the tools as well.
PYTHON_SOURCES := --config pyproject.toml . ../tools

# TPC-H scale factor of the demo and the benchmark, and the benchmark's storage servers.
SF ?= 0.1
SERVERS ?= 3

# How long faults are looked for.
SECONDS ?= 600

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## a cluster of four processes, TPC-H loaded and all 22 queries checked; make demo SF=1
	$(CARGO) build $(LOCKED) --release --bin drsdb
	"$$CARGO_TARGET_DIR/release/drsdb" demo --scale $(SF)

.PHONY: bench
bench: ## TPC-H benchmark against DataFusion, also as JSON; make bench SF=1 SERVERS=3
	$(CARGO) build $(LOCKED) --release --bin drsdb --bin drsdb-benchmarks
	"$$CARGO_TARGET_DIR/release/drsdb-benchmarks" tpch --scale $(SF) --servers $(SERVERS) --compare datafusion \
		--json "$$CARGO_TARGET_DIR/tpch.json"

.PHONY: test
test: test-rust test-python ## all tests, Rust and Python

.PHONY: test-rust
test-rust: ## the Rust tests: cargo-nextest where it is installed, else cargo test
	$(CARGO) build $(LOCKED) --bin drsdb
	if $(CARGO) nextest --version >/dev/null 2>&1; then \
		$(CARGO) nextest run $(LOCKED) --workspace --no-fail-fast; \
	else \
		$(CARGO) test $(LOCKED) --workspace --lib --bins --tests --no-fail-fast; \
	fi

.PHONY: test-python
test-python: $(VENV_READY) ## the Python tests, on a real cluster of the debug binary
	$(CARGO) build $(LOCKED) --bin drsdb
	cd client-py && DRSDB_BINARY="$$CARGO_TARGET_DIR/debug/drsdb" "$(BIN)/python" -m pytest
	"$(BIN)/python" -m pytest -c client-py/pyproject.toml --rootdir tools tools

.PHONY: soak
soak: ## faults on random seeds for long; make soak SECONDS=600
	$(CARGO) build $(LOCKED) --bin drsdb
	DRSDB_SOAK_SECONDS=$(SECONDS) $(CARGO) test $(LOCKED) --test faults -- --ignored --nocapture many_seeds_for_long

.PHONY: check
check: $(VENV_READY) ## formatting, lints, docs, types, crate edges; only reads
	$(CARGO) fmt --all --check
	"$(BIN)/python" tools/check_workspace.py
	cd client-py && "$(BIN)/ruff" format --check $(PYTHON_SOURCES)
	cd client-py && "$(BIN)/ruff" check $(PYTHON_SOURCES)
	cd client-py && "$(BIN)/mypy"
	$(CARGO) clippy $(LOCKED) --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(LOCKED) --workspace --no-deps --document-private-items

.PHONY: fix
fix: $(VENV_READY) ## formats, and mends what the linters can mend
	$(CARGO) fmt --all
	cd client-py && "$(BIN)/ruff" check --fix $(PYTHON_SOURCES)
	cd client-py && "$(BIN)/ruff" format $(PYTHON_SOURCES)
	$(CARGO) clippy $(LOCKED) --workspace --all-targets --fix --allow-dirty --allow-staged

.PHONY: clean
clean: ## removes what was built; databases (drsdb-data) stay
	$(CARGO) clean
	rm -rf $(VENV) client-py/build client-py/src/*.egg-info
	find client-py tools -name __pycache__ -prune -exec rm -rf {} +
	rm -rf client-py/.pytest_cache client-py/.mypy_cache client-py/.ruff_cache .pytest_cache .mypy_cache .ruff_cache

# Made anew when what it must hold has changed. The package is installed in place, so its sources need no installation.
$(VENV_READY): client-py/requirements.txt client-py/pyproject.toml
	@test -n "$(PYTHON)" || { echo "no python3 is on the PATH: install Python 3.11 or newer" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than 3.11: set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "setting up $(VENV) with $$("$(PYTHON)" --version)"
	"$(PYTHON)" -m venv --clear $(VENV)
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --requirement client-py/requirements.txt
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable client-py
	touch $@
