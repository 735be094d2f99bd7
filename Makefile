# The front door: `make demo` and `make test` work on a fresh clone with Python 3.11+, make and a C++ compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
# Processes that share the tests, each on a core of its own; who is done first takes tests from the others.
WORKERS ?= 2
SHARED = --numprocesses $(WORKERS) --dist worksteal
QUICK := "not slow and not serial and not native"
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest
TOGETHER = $(MAKE) --no-print-directory --keep-going
MINIMUM := .venv-minimum
MINIMUM_PYTHON ?= python3.11
UV = $(MINIMUM)/bin/uv pip install --quiet --python $(MINIMUM)
EXTRAS := dev pretrained-offline text-offline lora acdc slides export dali-cuda13

.PHONY: demo test test-quick test-parallel test-serial test-minimum native-checks lint docs extension bench gpu-check clean
demo: extension
	$(BIN)/mpamatch-train

# Everything: each part runs, also after one that failed, and make names those that did. lint needs one core and the
# compilers take what is left; the serial part has the machine to itself.
test:
	+@$(TOGETHER) -j2 --output-sync=target lint native-checks; first=$$?; \
	$(TOGETHER) -j1 test-parallel test-serial && exit $$first

# For the edit loop: what takes long, compiles or measures seconds stays out.
test-quick: extension
	$(PYTEST) $(SHARED) -m $(QUICK)

test-parallel: extension
	$(PYTEST) $(SHARED) -m "not serial and not native" --durations=12

test-serial: extension
	$(PYTEST) -m serial --durations=12

# The quick tests with the lowest versions that pyproject.toml allows, on the lowest Python, against the package as a user
# would have installed it: PYTHONSAFEPATH and append keep the checkout's own mpamatch/ behind that. build/lib* would lend
# the installation modules that are gone by now.
test-minimum: $(MINIMUM)/installed
	rm -rf build/lib build/lib.*
	MPAMATCH_CUDA=0 $(UV) --no-deps --no-build-isolation --reinstall-package mpamatch .
	OMP_NUM_THREADS=1 PYTHONSAFEPATH=1 $(MINIMUM)/bin/python -m pytest --import-mode=append $(SHARED) -m $(QUICK)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h' | xargs $(BIN)/clang-format --dry-run --Werror

# The pages as a site, build/docs/index.html; a link that leads nowhere is an error, as is every warning.
docs: $(INSTALLED)
	$(BIN)/python -m sphinx --quiet --fresh-env --fail-on-warning --keep-going --nitpicky -c docs . build/docs

# Compilers' checks: sanitizers, CUDA kernels on the host, registers and spills, Triton to machine code. Each keeps its
# verdict in build/native-checks while what it compiles stays the same. Tests of a file share its folders of builds.
native-checks: extension
	$(PYTEST) --numprocesses $(WORKERS) --dist loadfile -m native --durations=6

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
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[dev,dev-export,dev-docs,pretrained-offline,text-offline,lora,acdc,slides,export,dali-cuda13]"
	touch $@

# uv takes the lowest version of what pyproject.toml names and the highest of what that brings along; the three named here
# build the extension. It reads no configuration of pip: UV_DEFAULT_INDEX names another index. The .pth puts the checkout
# last on the path, for tests/, setup.py and build_backend.py.
$(MINIMUM)/installed: pyproject.toml constraints.txt
	$(MINIMUM_PYTHON) -m venv --clear $(MINIMUM)
	$(MINIMUM)/bin/python -m pip install --quiet --constraint constraints.txt uv
	$(UV) --resolution lowest-direct --requirement pyproject.toml $(EXTRAS:%=--extra %) "setuptools>=77" "cmake>=3.22" "ninja>=1.11"
	echo '$(CURDIR)' > "$$($(MINIMUM)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/checkout.pth"
	touch $@

clean:
	rm -rf $(VENV) $(MINIMUM) build *.egg-info mpamatch/_C.* mpamatch/_cuda.*
