# The front door: `make demo` and `make test` work on a fresh clone with Python 3.11+, make and a C++ compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: demo test lint extension bench gpu-check clean
demo: extension
	$(BIN)/mpamatch-train

test: lint extension
	$(BIN)/python -m pytest --durations=12

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
