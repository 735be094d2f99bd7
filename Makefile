# The front door: `make demo` and `make test` work on a fresh clone with Python 3.11+, make and a C++ compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
WORKERS ?= 2  # processes that share the tests, each on a core of its own
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: demo test test-quick test-parallel test-serial lint extension bench gpu-check clean
demo: extension
	$(BIN)/mpamatch-train

# Everything. Each part runs, also after one that failed; then make names those that did and ends with an error.
test: extension
	@$(MAKE) --no-print-directory --keep-going lint test-parallel test-serial native-checks

# For the edit loop: what takes long, compiles or measures seconds stays out.
test-quick: extension
	$(PYTEST) -n $(WORKERS) --dist worksteal -m "not slow and not serial and not native"

test-parallel: extension
	$(PYTEST) -n $(WORKERS) --dist worksteal -m "not serial and not native" --durations=12

test-serial: extension
	$(PYTEST) -m serial --durations=12

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The native libraries of this checkout; quick where nothing has changed.
extension: $(INSTALLED)
	$(BIN)/python setup.py --quiet build_ext --inplace

bench: extension
	$(BIN)/mpamatch bench

# With the python3 at hand and no network: builds into build/gpu-check and installs nothing.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py

# torch, cmake and ninja come first: without build isolation the extension is built against this very torch.
$(INSTALLED): pyproject.toml setup.py build_backend.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "setuptools>=77" wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch cmake ninja
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[dev,text-offline,lora,acdc,dali-cuda13]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info mpamatch/_C.* mpamatch/_cuda.*
