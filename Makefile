# Every target sets up what it needs, on a machine that has Python 3.11 to 3.13 and make.
# Another Python: make PYTHON=python3.12 test

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
AIRFLOW := .venv-airflow
AIRFLOW_READY := $(AIRFLOW)/.ready
MLFLOW := .venv-mlflow
MLFLOW_READY := $(MLFLOW)/.ready
EXTRAS := bench,check,test
PATHS := pipedag_core adapters tests dags benchmarks

.DEFAULT_GOAL := help
.PHONY: help setup image demo demo-mlflow test property crash stress types check bench bench-airflow format clean dags setup-airflow test-airflow test-mlflow e2e-airflow look-airflow look-dagster check-airflow

help: ## List the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv with everything that work on this repository needs

# The stamp is made last, so that an installation that broke off is done again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2> /dev/null || { \
	  echo "pipedag-core needs Python 3.11, 3.12 or 3.13, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 | head -n 1)." >&2; \
	  echo "Name another one, for example: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
# Without compiled files every process compiles all of its imports again.
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m compileall -q -j 2 $(VENV)/lib > $(VENV)/compile.log 2>&1 || true
	@touch $@

setup-airflow: $(AIRFLOW_READY) ## Make .venv-airflow, for Airflow needs an environment of its own

# Most of Kubernetes' client is never imported, so it is not worth compiling.
$(AIRFLOW_READY): pyproject.toml constraints-airflow.txt
	@test -x $(AIRFLOW)/bin/python || $(PYTHON) -m venv $(AIRFLOW)
	$(AIRFLOW)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints-airflow.txt -e '.[test-airflow]'
	env -u PYTHONDONTWRITEBYTECODE $(AIRFLOW)/bin/python -m compileall -q -j 2 -x '/kubernetes(_asyncio)?/' $(AIRFLOW)/lib > $(AIRFLOW)/compile.log 2>&1 || true
	@touch $@

# MLflow wants an older pyarrow than the rest: it and what only MLflow needs stand in an environment of their own, which sees .venv behind them.
$(MLFLOW_READY): $(READY) constraints-mlflow.txt
	test -x $(MLFLOW)/bin/python || $(BIN)/python -m venv $(MLFLOW)
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')')" \
	  > "$$($(MLFLOW)/bin/python -c 'import site; print(site.getsitepackages()[0])')/behind.pth"
	$(MLFLOW)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-mlflow.txt -e '.[test-mlflow]'
	env -u PYTHONDONTWRITEBYTECODE $(MLFLOW)/bin/python -m compileall -q -j 2 $(MLFLOW)/lib > $(MLFLOW)/compile.log 2>&1 || true
	@touch $@

demo: $(READY) ## Run the example pipeline on real data
	$(BIN)/python dags/demo.py

demo-mlflow: $(MLFLOW_READY) ## Run it where MLflow is, which is told of everything, and register its production flow there
	$(MLFLOW)/bin/python dags/demo.py

test: $(READY) $(AIRFLOW_READY) $(MLFLOW_READY) ## Run the tests; with ARGS="tests/unit -k name" only some of the core and of the Dagster adapter
	$(BIN)/python -m pytest -n 2 $(ARGS)
	$(if $(ARGS),,$(MAKE) test-airflow test-mlflow)

test-mlflow: $(MLFLOW_READY) ## Run the tests of the MLflow adapter, on a real tracking server
	$(MLFLOW)/bin/python -m pytest -n 2 --dist loadgroup tests/adapters/mlflow $(ARGS)

test-airflow: $(AIRFLOW_READY) ## Run the tests of the Airflow adapter that need no running Airflow
	$(AIRFLOW)/bin/python -m pytest -n 2 tests/adapters/airflow $(ARGS)

e2e-airflow: $(AIRFLOW_READY) ## Run DAGs on a running Airflow: api-server, scheduler and dag-processor (minutes)
	PIPEDAG_LONG_TESTS=1 $(AIRFLOW)/bin/python -m pytest tests/adapters/airflow/test_end_to_end.py $(ARGS)

image: $(AIRFLOW_READY) ## Build, push and run the image of the page on deployment; needs Docker (DOCKER=podman) and a registry (REGISTRY=host:port)
	PIPEDAG_TEST_DOCKER=$(or $(DOCKER),docker) PIPEDAG_TEST_REGISTRY=$(or $(REGISTRY),127.0.0.1:5000) \
		$(AIRFLOW)/bin/python -m pytest tests/adapters/airflow/test_image.py $(ARGS)

property: $(READY) ## Edit flows at random and compare with runs from scratch; EDITS=50000 for more than 5,000 edits
	PIPEDAG_PROPERTY_EDITS=$(or $(EDITS),5000) $(BIN)/python -m pytest -n 2 tests/flows/property $(ARGS)

crash: $(READY) ## Kill runs at every place and 200 random moments (minutes)
	PIPEDAG_LONG_TESTS=1 $(BIN)/python -m pytest -n 2 tests/flows/crash $(ARGS)

stress: $(READY) ## Let many write and read at once, for two minutes
	PIPEDAG_LONG_TESTS=1 $(BIN)/python -m pytest -n 0 tests/flows/stress $(ARGS)

types: $(READY) ## Write docs/types.md anew: what each library gets back of each type
	PIPEDAG_WRITE_TYPES=1 $(BIN)/python -m pytest -q -n 0 tests/contract/test_types.py

dags: $(READY) ## Generate the DAG files of the example anew; CHECK=--check says whether they are up to date
	cd dags && ../$(BIN)/pipedag airflow generate pipelines.flights:get_pipeline --instance full -o airflow $(CHECK)
	cd dags && ../$(BIN)/pipedag airflow generate-scoring .pipedag/bundles/flights --instance full \
	  --input 'clean.flights=.pipedag/requests/{{ ds }}.parquet' --input clean.weather=table:02_early_cleaning.weather \
	  --input clean.planes=table:02_early_cleaning.planes --input clean.airports=table:02_early_cleaning.airports \
	  --output 'model_predict=.pipedag/scores/{{ ds }}.parquet' --schedule @daily -o airflow $(CHECK)

look-airflow: $(AIRFLOW_READY) ## Take the picture of the flights' graph in Airflow for the docs; needs Chromium (a minute)
	PYTHONPATH=. $(AIRFLOW)/bin/python tests/adapters/airflow/look.py docs/images/airflow-graph.png

look-dagster: $(VENV)/.ready-ui ## Look at the flights in `dagster dev`, and take the pictures for the docs; needs Chromium (two minutes)
	PYTHONPATH=.:adapters $(BIN)/python tests/adapters/dagster/look.py docs/images/dagster-assets.png docs/images/dagster-asset.png

# Dagster's pages are needed to look at them only.
$(VENV)/.ready-ui: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dagster-ui]'
	@touch $@

check-airflow: $(READY) $(AIRFLOW_READY) ## Check the types of the Airflow adapter
	$(BIN)/basedpyright -p adapters/pipedag_airflow --pythonpath $(AIRFLOW)/bin/python

check: $(READY) ## Check format, style, types and floors
	$(BIN)/ruff format --check $(wildcard $(PATHS))
	$(BIN)/ruff check $(wildcard $(PATHS))
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory dags CHECK=--check

bench: $(READY) ## Run the benchmarks
	$(BIN)/python benchmarks/run.py

bench-airflow: $(AIRFLOW_READY) ## Run the benchmarks of the Airflow adapter; makes an environment with Cosmos and dbt (minutes, once)
	$(AIRFLOW)/bin/python benchmarks/run.py --only airflow --only cosmos $(ARGS)

format: $(READY) ## Put the code into the common form
	$(BIN)/ruff format $(wildcard $(PATHS))
	$(BIN)/ruff check --fix $(wildcard $(PATHS))

clean: ## Remove .venv and what tests and tools leave behind
	rm -rf $(VENV) $(AIRFLOW) $(MLFLOW) .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist build
