# Two commands: `make run` serves, `make test` proves. Both set up everything that they need in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
HOST ?= 127.0.0.1
PORT ?= 8943
DATA ?= data
WORKERS ?= 2

.PHONY: run test lint format perf soak fuzz wheel clean

# A stamp that is newer than pyproject.toml means: the environment fits it.
$(VENV)/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("streamsrv needs Python 3.11 or later, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

run: $(VENV)/ready
	exec $(BIN)/streamsrv serve --host $(HOST) --port $(PORT) --data $(DATA) --workers $(WORKERS)

# On the cores that there are, four at most: each has servers of its own besides.
test: $(VENV)/ready
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal --cov --cov-report=
	$(BIN)/coverage report

# Longer counts of what goes by chance, with new seeds: SOAK=100 make soak. docs/reliability.md lists them.
SOAK_TESTS := tests/test_kill.py tests/test_power_cut.py tests/test_failing_disk.py \
	tests/test_failing_verbs.py tests/test_removed_files.py tests/test_clock_steps.py tests/store/test_rot.py \
	tests/test_pixel_fairness.py tests/test_many_items.py tests/ingest/test_wrong_types.py \
	tests/test_operations.py tests/fuzz/test_fuzz.py

soak: $(VENV)/ready
	SOAK=$${SOAK:-20} $(BIN)/python -m pytest -s -x $(SOAK_TESTS)

# SECONDS for each reader: SECONDS=600 make fuzz. Without atheris it goes on unguided.
fuzz: $(VENV)/ready
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,fuzz]'
	$(BIN)/python tests/fuzz/run_fuzz.py --seconds $${SECONDS:-60}

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/lint_prose.py

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Half an hour; PERF="--quick" make perf for a look.
perf: $(VENV)/ready
	$(BIN)/python -m perf $(PERF)

wheel: $(VENV)/ready
	$(BIN)/python -m hatchling build

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
