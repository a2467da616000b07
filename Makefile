# make bench   set up .venv and run the main job
# make test    set up .venv-test and run the tests
# make docs    build the documentation's site in build/site
# make lint    formatting, lint and types, in .venv-test
#
# TORCH chooses the build of torch; `make bench TORCH=torch==2.13.0` takes the package index's default, which on
# most systems is a CUDA build of several GB.
PYTHON ?= python3
TORCH ?= torch==2.13.0 --extra-index-url https://download.pytorch.org/whl/cpu --retries 1
BUILD_TOOLS = setuptools wheel cmake ninja pybind11
BENCH ?=

.PHONY: bench test lint docs clean

bench: .venv/installed
	.venv/bin/vleff bench $(BENCH)

test: .venv-test/installed
	OMP_WAIT_POLICY=passive .venv-test/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder $(TEST)

docs: .venv-test/installed
	.venv-test/bin/mkdocs build

lint: .venv-test/installed
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' | xargs .venv-test/bin/clang-format --dry-run --Werror
	.venv-test/bin/mypy

.venv/installed: setup.py pyproject.toml CMakeLists.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q $(TORCH)
	.venv/bin/pip install -q $(BUILD_TOOLS)
	.venv/bin/pip install -q --no-build-isolation ".[bench]"
	touch $@

.venv-test/installed: setup.py pyproject.toml CMakeLists.txt
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/pip install -q $(TORCH)
	.venv-test/bin/pip install -q $(BUILD_TOOLS)
	PATH="$(CURDIR)/.venv-test/bin:$$PATH" VLEFF_DEV=1 .venv-test/bin/pip install -q --no-build-isolation -e ".[test,dev]"
	touch $@

clean:
	rm -rf .venv .venv-test build dist *.egg-info vleff/*.so
