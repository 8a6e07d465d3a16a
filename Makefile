# `make run` starts the server, `make test` runs the tests. Both first install what they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
HOST ?= 127.0.0.1
PORT ?= 8943
DATA ?= data
WORKERS ?= 2

# Without bytecode each process of a test compiles the whole source again.
unexport PYTHONDONTWRITEBYTECODE

PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: run test test-fast test-newest test-cluster test-deployment test-viewers test-nodes test-services
.PHONY: test-programs lint format perf soak soak-cluster fuzz docs wheel release audit clean

define environment
	$(PYTHON) -c 'import sys; sys.exit("streamsrv needs Python 3.11 or later, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --editable '$(1)'
	touch $(VENV)/installed
endef

# If one of these files is newer than pyproject.toml, the environment has the packages of the server, or those
# of its development too.
$(VENV)/installed: pyproject.toml
	$(call environment,.)

$(VENV)/ready: pyproject.toml
	$(call environment,.[dev])
	touch $@

# And those of the documentation and of a release.
$(VENV)/extras: $(VENV)/ready
	$(PIP) install --editable '.[dev,docs,release]'
	touch $@

run: $(VENV)/installed
	exec $(BIN)/streamsrv serve --host $(HOST) --port $(PORT) --data $(DATA) --workers $(WORKERS)

# All tests, 6 minutes on two cores. Some tests wait, so there are more processes than cores; no more than
# four, because tests start servers too. A module stays in one process, in its order: its tests share a server.
# The short modules of the last folders come last, so no process ends long before the others.
PYTEST := $(BIN)/python -m pytest -n $(shell n=$$(nproc); echo $$((n < 2 ? 3 : 4))) --dist loadfile --no-loadscope-reorder
# COVERAGE=1 make test: with branch coverage of the tests that tests/counting.py chooses.
# NumPy begins each process with threads that nothing uses: without them a server starts a tenth sooner.
test: export OPENBLAS_NUM_THREADS = 1
test: $(VENV)/ready
	$(PYTEST) --ignore=tests/deployment --ignore=tests/soak $(if $(COVERAGE),--cov --cov-report=term-missing:skip-covered)

# At most 60 s on two cores: the rooms without most servers, and a few tests of a whole server. Left out are
# tests that start many processes, replay many crashes, or fill much memory.
FAST := tests/dicom tests/wire tests/codecs tests/store tests/ingest tests/search tests/web tests/test_floors.py \
	tests/test_docs.py tests/test_config.py tests/test_tutorial.py
SLOW := tests/dicom/test_series_template.py tests/dicom/test_jsonmembers.py tests/codecs/test_libjpeg.py \
	tests/codecs/test_pool.py tests/codecs/test_mutants.py tests/codecs/test_taken_over.py \
	tests/codecs/test_reference_decoders.py \
	tests/store/test_replay.py tests/store/test_rot.py tests/store/test_changes_log.py tests/store/test_backup.py \
	tests/store/test_postgresql.py tests/store/test_cluster.py tests/ingest/test_assembly.py \
	tests/search/test_search_long_metadata.py tests/search/test_search_order.py tests/web/test_describe.py

test-fast: $(VENV)/ready
	$(PYTEST) $(SLOW:%=--ignore=%) $(FAST)

# The part of test-fast in which a new Python can differ: sockets, threads and processes, HTTP, JSON and text,
# libraries in C, settings, and a whole server.
NEWEST := tests/web tests/wire tests/ingest tests/codecs/test_confinement.py tests/codecs/test_registry.py \
	tests/codecs/test_rendering.py tests/dicom/test_charsets.py tests/dicom/test_jsontext.py \
	tests/dicom/test_nativexml.py tests/dicom/test_values.py tests/store/test_shared_map.py tests/store/test_store.py \
	tests/store/test_transaction.py tests/search/test_search_answers.py tests/test_config.py tests/test_tutorial.py

test-newest: $(VENV)/ready
	$(PYTEST) $(SLOW:%=--ignore=%) $(NEWEST)

# The tests over HTTP, which were written for a store in a folder, on nodes over PostgreSQL and a bucket.
# tests/store_kinds.py lists them.
test-cluster: $(VENV)/ready
	$(PYTEST) --store cluster

# The files of conf/ and the Dockerfile in the real programs: proxies, systemd, buildah, Prometheus. Needs
# root, and the programs that .ci/run installs. SOAK=10 sends 2 GB through each proxy.
# Four processes share the modules: viewers and browsers, nodes and releases, services beside a server, and all
# others. The name gives each its own ports.
VIEWERS := $(wildcard $(patsubst %,tests/deployment/test_*%*.py,viewer browser dashboard oidc))
NODES := $(wildcard $(patsubst %,tests/deployment/test_*%*.py,node release restore syslog))
SERVICES := $(wildcard $(patsubst %,tests/deployment/test_*%*.py,database object cluster gateways move prometheus proxies))
SHARED := $(VIEWERS) $(NODES) $(SERVICES)

# A part of test-cluster.
BOTH := tests/test_operations.py tests/test_metadata_http.py \
	tests/test_tutorial.py::test_the_chinese_page_on_our_samples

test-deployment: $(VENV)/extras
	$(MAKE) --jobs 4 --keep-going --output-sync=target test-viewers test-nodes test-services test-programs

test-viewers: $(VENV)/extras
	PYTEST_XDIST_WORKER=gw4 $(BIN)/python -m pytest -q -s $(VIEWERS)

test-nodes: $(VENV)/extras
	PYTEST_XDIST_WORKER=gw5 $(BIN)/python -m pytest -q -s $(NODES)
	PYTEST_XDIST_WORKER=gw5 $(BIN)/python -m pytest -q --store cluster $(BOTH)

test-services: $(VENV)/extras
	PYTEST_XDIST_WORKER=gw6 $(BIN)/python -m pytest -q -s $(SERVICES)

test-programs: $(VENV)/extras
	PYTEST_XDIST_WORKER=gw7 $(BIN)/python -m pytest -q -s $(SHARED:%=--ignore=%) tests/deployment

# More rounds of the random tests, with new seeds: SOAK=100 make soak. docs/reliability.md lists them.
SOAK_TESTS := tests/test_kill.py tests/test_power_cut.py tests/test_failing_disk.py \
	tests/test_failing_verbs.py tests/test_removed_files.py tests/test_clock_steps.py tests/store/test_rot.py \
	tests/test_pixel_fairness.py tests/test_many_items.py tests/ingest/test_wrong_types.py \
	tests/events/test_told_once.py tests/test_operations.py tests/test_rules_model.py tests/fuzz/test_fuzz.py tests/dicom/test_series_template.py \
	tests/deployment/test_object_reading.py tests/deployment/test_node_kills.py tests/deployment/test_move_kills.py \
	tests/deployment/test_node_frames.py \
	tests/test_dimse.py tests/test_dimse_mutants.py tests/codecs/test_mutants.py

soak: $(VENV)/ready soak-cluster
	SOAK=$${SOAK:-20} $(BIN)/python -m pytest -s -x $(SOAK_TESTS)

# Machines of a cluster that fail, in network namespaces; nodes over Ceph; and test-cluster. Needs root, etcd,
# Patroni and Ceph: docs/reliability.md.
CEPH := tests/deployment/test_node_kills.py tests/store/contract tests/deployment/test_object_reading.py
soak-cluster: $(VENV)/ready
	SOAK=$${SOAK:-20} $(BIN)/python -m pytest -s -x tests/soak
	SOAK=$${SOAK:-20} $(BIN)/python -m pytest -s -x --s3 ceph $(CEPH)
	$(MAKE) test-cluster

# SECONDS for each reader: SECONDS=600 make fuzz. Without atheris the inputs are not guided by coverage.
fuzz: $(VENV)/ready
	-$(PIP) install --editable '.[dev,fuzz]'
	$(BIN)/python tests/fuzz/run_fuzz.py --seconds $${SECONDS:-60}

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/lint_prose.py

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Half an hour; PERF="--quick" make perf takes minutes.
perf: $(VENV)/ready
	$(BIN)/python -m perf $(PERF)

# The documentation as a site in build/site. A warning, a broken link or a file of another host fails.
docs: $(VENV)/extras
	rm -rf build/site
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -c docs -d build/doctrees . build/site
	$(BIN)/python tests/check_site.py build/site

# Archives have the date of the newest release, so one source gives the same bytes each time.
RELEASED = $(shell sed -n 's/^## [0-9.]* (\(.*\))$$/\1/p' CHANGELOG.md | head -n 1)
wheel release audit: export SOURCE_DATE_EPOCH = $(shell date --utc --date '$(RELEASED)' +%s)

# The wheel and the source archive in dist.
wheel: $(VENV)/ready
	rm -rf dist
	$(BIN)/python -m hatchling build

# With the list of components (CycloneDX) of a fresh environment, build/release, in which only the wheel is
# installed. Needs a checkout without new or changed files.
release: wheel $(VENV)/extras
	rm -rf build/release
	$(PYTHON) -m venv --without-pip build/release
	$(PIP) --python build/release/bin/python install dist/*.whl
	$(BIN)/cyclonedx-py environment build/release/bin/python --pyproject pyproject.toml --output-reproducible \
		--output-file dist/$$(basename dist/*.tar.gz .tar.gz).cdx.json
	$(BIN)/twine check --strict dist/*.whl dist/*.tar.gz
	$(BIN)/python tests/check_release.py dist

# The packages of the release beside the advisories that the package index knows.
audit: release
	$(BIN)/python tests/audit_packages.py build/release/lib/python3*/site-packages

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
