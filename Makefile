# Everything here sets itself up: git, python3, make and the package index are all it needs.
.DEFAULT_GOAL := help
.PHONY: help demo ui test test-all long answers kserve-answers check docs bench clean
# Imports are only quick when Python may keep its compiled files.
unexport PYTHONDONTWRITEBYTECODE
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export DO_NOT_TRACK = 1
export DVC_NO_ANALYTICS = 1

PORT ?= 4200
PYTHON ?= python3
# Two processes for each core, up to four; PARALLEL= runs the tests one after the other.
PARALLEL ?= --numprocesses auto --maxprocesses 4 --dist loadgroup
INSTALL = .venv/bin/uv pip install --quiet --python .venv/bin/python --compile-bytecode --constraint constraints.txt

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

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

demo: .venv/demo.stamp ## run data, training, serving, new data and rollback on this machine
	@mkdir -p .demo
	@PATH="$(CURDIR)/.venv/bin:$$PATH" PREFECT_HOME="$(CURDIR)/.demo/prefect" .venv/bin/python flows/quickstart.py

ui: .venv/demo.stamp ## serve the Prefect UI with the demo's runs, on PORT
	@echo "For commands in another shell: export PREFECT_API_URL=http://127.0.0.1:$(PORT)/api"
	@PREFECT_HOME="$(CURDIR)/.demo/prefect" PREFECT_SERVER_UI_API_URL=http://127.0.0.1:$(PORT)/api \
		.venv/bin/prefect server start --host 127.0.0.1 --port $(PORT)

PYTEST = PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/python -m pytest
# The parts of `make long`, to run one at a time.
LONG_1 = tests/hostile
LONG_2 = tests/faults/test_data_kills.py
LONG_3 = tests/faults/test_power_cuts.py tests/faults/test_vanishing.py
LONG_4 = tests/faults/test_injected_errors.py tests/faults/test_rounds.py
LONG_5 = $(addprefix tests/faults/test_,repro_kill.py runner_kill.py demo.py git_lock.py scratch.py)
LONG_6 = tests/interop/test_public_shapes_dvc.py
LONG = $(LONG_1) $(LONG_2) $(LONG_3) $(LONG_4) $(LONG_5) $(LONG_6)

test: .venv/test.stamp ## run the tests that must pass, in minutes
	@$(PYTEST) -m "not long" $(PARALLEL) $(ARGS)

test-all: .venv/test.stamp ## run all tests: also the generated and the kill suites, and the real dvc for each recorded answer
	@DVKF_TEST_ALL=1 DVKF_LIVE_DVC=1 $(PYTEST) $(PARALLEL) $(ARGS)

long: .venv/test.stamp ## run attacks, kills, power cuts and broken disks at full length, PART=1 to 6 or all (root for some)
	@DVKF_TEST_ALL=1 DVKF_ZOO_PARTS=24 DVKF_FUZZ_SEEDS=300 FAULTS_CUTS=100 FAULTS_ERRORS=200 FAULTS_KILLS=10 KILL_TIMES=16 \
		ROUNDS=100 VANISHING=1 DVKF_LISTED_PAGES=1000 DVKF_LONG=1 \
		$(PYTEST) $(PARALLEL) --timeout 7200 $(if $(PART),$(LONG_$(PART)),$(LONG)) $(ARGS)

RECORDED = $(patsubst tests/interop/answers/%.json,tests/interop/%.py,$(wildcard tests/interop/answers/*.json))
answers: .venv/test.stamp ## record the answers of the real dvc to the fixed tables of tests/interop
	@DVKF_RECORD_DVC=1 $(PYTEST) $(PARALLEL) --dist loadfile $(RECORDED) $(ARGS)

# kserve pins versions that the package does not take; scikit-learn must be the same, since both fit the models.
.kserve-venv/stamp: .venv/test.stamp
	@echo "Installing kserve into .kserve-venv ..."
	@$(PYTHON) -m venv .kserve-venv
	@.venv/bin/uv pip install --quiet --python .kserve-venv/bin/python 'kserve==0.21.*' \
		$$(.venv/bin/uv pip freeze --quiet --python .venv/bin/python | grep '^scikit-learn==')
	@touch $@

kserve-answers: .venv/test.stamp .kserve-venv/stamp ## record the answers of kserve.ModelServer to the table of tests/kserve_peer
	@cd tests && PYTHONPATH=. ../.venv/bin/python -m kserve_peer.record ../.kserve-venv/bin/python

docs: .venv/docs.stamp ## build the documentation as a site in site/
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --strict

check: .venv/test.stamp docs ## check lint, types, layers and documents
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@.venv/bin/python -m pytest -q tests/test_documents.py

bench: .venv/test.stamp ## compare with dvc and the limits of the disk; writes tests/benchmarks/RESULTS.md
	@PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/python tests/benchmarks/run.py $(ARGS)

clean: ## remove all generated files
	@rm -rf .venv .kserve-venv .demo site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
