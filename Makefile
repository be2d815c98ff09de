# Everything here sets itself up: git, python3, make and the package index are all it needs.
.DEFAULT_GOAL := help
.PHONY: help demo ui test long check docs bench clean
# Imports are only quick when Python may keep its compiled files.
unexport PYTHONDONTWRITEBYTECODE
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export DO_NOT_TRACK = 1
export DVC_NO_ANALYTICS = 1

PORT ?= 4200
PYTHON ?= python3
# One process a core, up to four; PARALLEL= runs the tests one after the other.
PARALLEL ?= --numprocesses auto --maxprocesses 4 --dist loadgroup
INSTALL = .venv/bin/uv pip install --quiet --python .venv/bin/python --compile-bytecode --constraint constraints.txt

help: ## say what there is
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

.venv/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed")'
	@echo "Setting up .venv (once) ..."
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check uv

.venv/demo.stamp: .venv/bin/uv pyproject.toml constraints.txt
	@echo "Installing the package and what it needs ..."
	@$(INSTALL) --editable '.[serve]'
	@touch $@

.venv/test.stamp: .venv/bin/uv pyproject.toml constraints.txt
	@echo "Installing the package, its tests and checks ..."
	@$(INSTALL) --editable '.[serve,test,check]'
	@touch $@ .venv/demo.stamp

.venv/docs.stamp: .venv/test.stamp
	@echo "Installing what builds the documentation ..."
	@$(INSTALL) --editable '.[docs]'
	@touch $@

demo: .venv/demo.stamp ## data, training, serving, new data, rollback: the whole road on this machine
	@mkdir -p .demo
	@PATH="$(CURDIR)/.venv/bin:$$PATH" PREFECT_HOME="$(CURDIR)/.demo/prefect" .venv/bin/python flows/quickstart.py

ui: .venv/demo.stamp ## the Prefect UI over what the demo did, on PORT
	@PREFECT_HOME="$(CURDIR)/.demo/prefect" PREFECT_SERVER_UI_API_URL=http://127.0.0.1:$(PORT)/api \
		.venv/bin/prefect server start --host 127.0.0.1 --port $(PORT)

test: .venv/test.stamp ## the tests
	@PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/python -m pytest $(PARALLEL) $(ARGS)

long: .venv/test.stamp ## attacks, kills, power cuts and broken disks at full length (an hour or more; root for some)
	@PATH="$(CURDIR)/.venv/bin:$$PATH" DVKF_ZOO_PARTS=24 DVKF_FUZZ_SEEDS=300 FAULTS_CUTS=100 FAULTS_ERRORS=200 FAULTS_KILLS=10 \
		KILL_TIMES=16 ROUNDS=100 VANISHING=1 DVKF_LISTED_PAGES=1000 DVKF_LONG=1 .venv/bin/python -m pytest --timeout 7200 \
		tests/hostile tests/faults tests/interop/test_public_shapes_dvc.py $(ARGS)

docs: .venv/docs.stamp ## the documentation, as a site in site/
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --strict

check: .venv/test.stamp docs ## lint, types, layers, documents
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@.venv/bin/python -m pytest -q tests/test_documents.py

bench: .venv/test.stamp ## compare with dvc and the limits of the disk; writes tests/benchmarks/RESULTS.md
	@PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/python tests/benchmarks/run.py $(ARGS)

clean: ## remove what all of this made
	@rm -rf .venv .demo site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
