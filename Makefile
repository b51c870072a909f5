# Every target sets up what it needs; a second run is quick. CI runs the same targets.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo dev test test-all screens lint format bench proto lock docs requirements reliability ci clean build wheel server

ENV := . ops/dev/environment.sh &&
PY := .venv/bin/python
RERANKER := gpu-server/models/medkg-reranker-minilm
DEMO := $(PY) examples/demo.py --server-binary build/gpu-server --reranking-model medkg-reranker-minilm=$(RERANKER) $(DEMO_ARGS)

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## everything that demo and test need
	@ops/dev/setup.sh libtorch dev models
	@$(MAKE) --no-print-directory build

build: server wheel

server:
	@ops/dev/setup.sh libtorch
	@$(ENV) cargo build --release --locked -p gpu-server
	@$(ENV) ops/dev/place.sh "$$CARGO_TARGET_DIR/release/gpu-server" build/gpu-server

wheel:
	@ops/dev/setup.sh dev
	@ops/dev/wheel.sh

demo: setup ## the main job on sample documents, or DOCS=path [QUESTION="..."]
	@$(ENV) $(DEMO) --embedding-model all-MiniLM-L6-v2="$$MEDKG_TEST_MODEL_DIR" $(if $(DOCS),--docs "$(DOCS)") $(if $(QUESTION),--question "$(QUESTION)")

dev: setup ## the same project in Dagster's web UI
	@$(ENV) $(DEMO) --embedding-model all-MiniLM-L6-v2="$$MEDKG_TEST_MODEL_DIR" --ui $(if $(DOCS),--docs "$(DOCS)")

test: setup ## all tests but the slow ones (Rust, then Python)
	@ops/dev/setup.sh reference services
	@ops/dev/test.sh

test-all: setup ## all tests
	@ops/dev/setup.sh reference models-more services browser
	@ops/dev/test.sh --slow

screens: setup ## takes the pictures of Dagster's pages for docs anew
	@ops/dev/setup.sh browser
	@$(ENV) MEDKG_SCREENS=docs/images $(PY) -m pytest -n0 tests/dagster/test_screens.py

lint: ## formatting, clippy, ruff, types, stubs, the wire's rules
	@ops/dev/setup.sh libtorch dev
	@$(MAKE) --no-print-directory wheel
	@ops/dev/lint.sh

format: ## formats Rust, Python and proto files
	@ops/dev/setup.sh dev
	@$(ENV) cargo fmt --all && buf format -w proto && $(PY) -m ruff format . && $(PY) -m ruff check --fix-only .

bench: setup ## gpu-server and the client against their peers; SUITE=engine|client|vectors|dagster for one; BENCH_ARGS=--full
	@ops/dev/setup.sh reference
	@ops/dev/setup.sh peers || echo "bench: some peers cannot be installed; the table says which were not measured"
	@$(ENV) $(PY) -m bench $(SUITE) $(BENCH_ARGS)

proto: ## regenerates the checked-in stubs
	@$(ENV) MEDKG_PROTO_WRITE=1 cargo test --quiet --release -p medkg-proto --test generated

lock: ## writes the Python lock files anew
	@ops/dev/setup.sh tools
	@$(ENV) ops/requirements/lock.sh

requirements: ## docs/requirements.md out of the last test run
	@$(ENV) $(PY) tests/requirements_table.py --junit build/junit-rust.xml --junit build/junit-python.xml

reliability: ## docs/reliability.md out of the last test run
	@$(ENV) $(PY) tests/reliability_table.py --junit build/junit-python.xml

ci: lint test

clean: ## removes what this clone built; the shared cache stays
	rm -rf build dist .venv target
