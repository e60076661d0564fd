# make demo    train and compare the methods on the embedded default, print the table
# make test    the test suite                 make lint      ruff, mypy, clang-format, codespell
# make bench   the benchmarks                 make sanitize  the long tests, sanitizers among them
# make fuzz    fuzzing by coverage, a minute  make matrix PYTHONS="python3.10 python3.12"
# make docs    the site, in build/site        make release   sdist and wheel, checked, in build/release
# make wheel   a wheel in build/wheel         make sdist     an sdist, and what is built from it
# make tiny    the embedded student again     make wheel-check TORCH=2.14.1   the wheel, elsewhere
# make lock    .ci/requirements.lock again
# The torch that is installed is the one pinned in pyproject.toml. On Linux, PyPI's torch brings
# CUDA along; point PIP_INDEX_URL or PIP_EXTRA_INDEX_URL at a CPU build to do without.
PYTHON ?= python3
BIN := .venv/bin
BUILD := $(shell sed -n 's/^requires = \[\(.*\)\]/\1/p' pyproject.toml | tr -d ,)
DEMO ?= --preset default
FUZZ_SECONDS ?= 15
PYTHONS ?= python3.10 python3.12 python3.13

.PHONY: demo test lint sanitize fuzz bench docs wheel wheel-check sdist release matrix lock tiny clean

demo: .venv/app
	$(BIN)/python setup.py -q build_ext --inplace
	$(BIN)/cwt run $(DEMO)

test: .venv/test
	$(BIN)/python setup.py -q build_ext --inplace
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror
	git ls-files | xargs $(BIN)/codespell

bench: .venv/test
	$(BIN)/python setup.py -q build_ext --inplace
	mkdir -p build && rm -f build/bench.json
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-columns=median,iqr,rounds \
	  --benchmark-json=build/bench.json $(if $(QUICK),--quick) $(BENCH)
	$(BIN)/python benchmarks/check_measured.py build/bench.json

sanitize: .venv/test  # what `make test` leaves out: sanitizers, longer sweeps
	$(BIN)/python -m pytest -m "slow or ci"

fuzz: .venv/test  # each target so many seconds; what it keeps is in build/fuzz
	$(BIN)/python setup.py -q build_ext --inplace
	for target in segment readers units answers; do \
	  OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/run.py $$target $(FUZZ_SECONDS) || exit 1; done

wheel: .venv/app  # what `pip install --no-build-isolation .` builds
	$(BIN)/pip wheel -q --no-build-isolation --no-deps -w build/wheel .

wheel-check: wheel  # the wheel in an environment of its own, under another torch than it was built with
	rm -rf build/wheel-check && $(PYTHON) -m venv build/wheel-check
	build/wheel-check/bin/pip install -q torch==$(TORCH) pytest hypothesis build/wheel/*.whl
	cd build/wheel-check && bin/python -m cwt_ext.doctor
	build/wheel-check/bin/python -P -m pytest -q -p no:cacheprovider -o addopts= -o pythonpath= \
	  tests/test_chunk_loss.py tests/test_linear_chunk_loss.py tests/test_segment.py

sdist: .venv/app  # a source distribution, and the doctor on what is built from it alone
	rm -rf build/sdist build/from-sdist
	$(BIN)/python setup.py -q sdist --dist-dir build/sdist
	CWT_CUDA=0 $(BIN)/pip install -q --no-deps --no-build-isolation --target build/from-sdist build/sdist/*.tar.gz
	cd build/from-sdist && PYTHONPATH=$$PWD ../../$(BIN)/python -P -m cwt_ext.doctor

docs: .venv/test  # warnings are errors, broken links among them; needs no network, nor does the site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "build/site/index.html; with search: $(PYTHON) -m http.server -d build/site"

release: sdist wheel .venv/test  # what docs/releases.md is about; uploads nothing
	rm -rf build/release && mkdir -p build/release
	cp build/sdist/*.tar.gz build/wheel/*.whl build/release
	$(BIN)/twine check --strict build/release/*
	$(BIN)/python .ci/check_release.py build/release

matrix:  # the library under other Pythons
	.ci/matrix $(PYTHONS)

lock: .venv/test  # the versions that CI installs; torch has a pin of its own, in pyproject.toml
	$(BIN)/pip install -q uv
	echo '$(BUILD)' | tr ' ' '\n' | grep '^"*torch==' | tr -d '"' > build/torch.txt
	$(BIN)/uv pip compile -q --upgrade pyproject.toml --extra app --extra test --extra docs --python-version 3.11 \
	  $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS)) --constraint build/torch.txt --no-emit-package torch \
	  --no-annotate --custom-compile-command "make lock" -o .ci/requirements.lock

tiny: .venv/app  # makes the embedded student again
	$(BIN)/python python/pretrain_tiny.py --out python/cwt/students/tiny

clean:
	rm -rf .venv build *.egg-info cwt_ext/*.so runs

.venv/build: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q $(BUILD)
	touch $@

.venv/app: .venv/build setup.py
	$(BIN)/pip install -q --no-build-isolation -e '.[app]'
	touch $@

.venv/test: .venv/app
	$(BIN)/pip install -q --no-build-isolation -e '.[app,test,docs]'
	touch $@
