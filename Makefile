# make setup   the environment in .venv, exact versions from requirements.lock
# make demo    the main job on a synthetic cohort and a real CT
# make study   twelve systems, fifty seeds, on frozen features of the synthetic cohort, with tables: half an hour
# make ui      MLflow on the runs of this folder
# make test    the quick tests (WORKERS=2 processes); make test-all: the slow ones too; make coverage: measured
# make reliability  docs/reliability.md, from the tests of faults
# make lowest  the quick tests with the lowest versions that setup.cfg allows
# make wheel   dist/: the wheel and the source archive
# make docs    the documentation as a site, in build/site
# make lint    style, types, known vulnerabilities; make lock: refresh requirements.lock and .hashes; make sbom: dist/

PYTHON ?= python3
BIN := .venv/bin
BUNDLE := bundles/fair_lung_ct
CONFIGS := $(BUNDLE)/configs
RUN := $(BIN)/python -W ignore -m monai.bundle run --bundle_root $(BUNDLE)
READY := .venv/.ready
SEED ?= 0

.PHONY: setup demo study objective ui test test-all lowest coverage reliability docs lint format sbom wheel lock clean

setup: $(READY)

$(BIN)/uv:
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep -E '^uv==' requirements.lock)"

$(READY): requirements.hashes setup.cfg pyproject.toml | $(BIN)/uv
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --requirement requirements.hashes
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --editable .
	touch $@

demo: $(READY)
	rm -rf demo
	$(BIN)/fairlung phantom demo/cohort --preset demo --format mixed --seed $(SEED)
	$(RUN) --config_file "['$(CONFIGS)/train.yaml','$(CONFIGS)/demo.yaml']" \
	    --cohort demo/cohort/cohort.csv --output_dir demo/run --cache_dir demo/cache --model_file demo/model.pt
	$(RUN) --config_file "['$(CONFIGS)/train.yaml','$(CONFIGS)/demo.yaml','$(CONFIGS)/evaluate.yaml']" \
	    --cohort demo/cohort/cohort.csv --output_dir demo/run --cache_dir demo/cache --split test
	$(BIN)/fairlung phantom demo/new --preset demo --new-scans 6 --seed $(SEED)
	mkdir -p demo/new/real && cp -R tests/data/chest_ct_dicom demo/new/real/
	$(RUN) --config_file $(CONFIGS)/inference.yaml --scans demo/new --output_dir demo/inference --checkpoint demo/model.pt
	@echo
	@$(BIN)/fairlung results demo/run
	@echo "predictions on new scans (synthetic, and one real chest CT): demo/inference/predictions.csv"
	@echo "everything about the run in MLflow: make ui"

demo/cohort/cohort.csv: $(READY)
	$(BIN)/fairlung phantom demo/cohort --preset demo --format mixed --seed $(SEED)

study: demo/cohort/cohort.csv
	$(BIN)/fairlung study studies/demo.yaml -o demo/study --workers 2

objective: demo/cohort/cohort.csv
	$(BIN)/fairlung study studies/objective.yaml -o demo/objective

ui: $(READY)
	MLFLOW_DISABLE_TELEMETRY=$(or $(MLFLOW_DISABLE_TELEMETRY),true) $(BIN)/mlflow ui --port $(or $(PORT),5000) $(if $(MLFLOW_TRACKING_URI),--backend-store-uri $(MLFLOW_TRACKING_URI))

# files stay together, long ones first (tests/conftest.py); a worker that dies ends the run
PYTEST := $(BIN)/python -m pytest --dist loadgroup --no-loadscope-reorder --max-worker-restart=0 --durations=10

test: $(READY)
	$(PYTEST) -n $(or $(WORKERS),2) -m "not slow" $(ARGS)

test-all: $(READY)
	$(PYTEST) -n $(or $(WORKERS),2) $(ARGS)

# in an environment of its own, .lowest, with the Python of .venv
lowest: | $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .lowest
	$(BIN)/uv pip install --quiet --python .lowest/bin/python --resolution lowest-direct --editable '.[dev,export,slurm]'
	.lowest/bin/python -m pytest -n $(or $(WORKERS),2) --dist loadgroup -m "not slow" \
	    --deselect tests/workflows/test_packaging.py::test_this_environment_is_the_locked_one $(ARGS)

coverage: $(READY)
	$(PYTEST) -n $(or $(WORKERS),2) --cov --cov-report=term $(ARGS)

reliability: $(READY)
	$(PYTEST) -n $(or $(WORKERS),2) -m fault --reliability=docs/reliability.md $(ARGS)

# where mypy and the reference find the packages by their import names
.lint/fairlung:
	mkdir -p $@
	ln -sfn ../../pipeline $@/pipeline
	ln -sfn ../../transforms $@/transforms

docs: $(READY) .lint/fairlung
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

lint: $(READY) .lint/fairlung
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(BIN)/uv tool run pip-audit@2.10.1 -r requirements.lock --no-deps --disable-pip --progress-spinner off >.lint/audit.txt 2>&1; \
	missed=$$(grep -c 'could not be audited' .lint/audit.txt); \
	if grep -q '^Found ' .lint/audit.txt; then cat .lint/audit.txt; exit 1; \
	elif [ "$$missed" != 0 ]; then echo "known vulnerabilities: the index says nothing of $$missed packages"; \
	elif ! grep -q '^No known' .lint/audit.txt; then echo "known vulnerabilities: $$(tail -1 .lint/audit.txt)"; fi

# what a release is made of, with licences (CycloneDX)
sbom: $(READY)
	mkdir -p dist
	$(BIN)/uv tool run --from cyclonedx-bom@7.5.0 cyclonedx-py environment --output-reproducible \
	    --output-file dist/fairlung.cdx.json $(BIN)/python
	sed -i 's#file://$(CURDIR)##' dist/fairlung.cdx.json

wheel: $(READY)
	$(BIN)/uv build --quiet --out-dir dist

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: | $(BIN)/uv
	$(BIN)/uv pip compile setup.cfg --all-extras --universal --python-version 3.11 --no-header --no-annotate \
	    --output-file requirements.lock
	$(BIN)/uv pip compile requirements.lock --universal --python-version 3.11 --no-header --no-annotate --no-deps \
	    --generate-hashes --output-file requirements.hashes

clean:
	rm -rf .venv .lint .lowest demo
