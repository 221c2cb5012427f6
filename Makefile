# Everything runs in .venv, which the first target that needs it makes. PYTHON=python3.12 chooses another interpreter.
PYTHON ?= python3
PIP := .venv/bin/python -m pip --disable-pip-version-check --quiet
WORKERS ?= 2
# Lines of nbprop that the tests run; COVERAGE= leaves it out. From Python 3.12 on the interpreter counts them itself.
COVERAGE ?= --cov --cov-report=term
CORE = $$(.venv/bin/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")')

help:                             ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):[^#]*## */  make \1|/' | column -t -s '|'

.venv/made: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "nbprop needs Python 3.11 or newer; name one with make PYTHON=python3.12" >&2; exit 1; }
	@echo "making .venv and installing nbprop into it (once; about a minute)"
	@$(PYTHON) -m venv .venv
	@$(PIP) install -e ".[plot,progress]"
	@touch $@

.venv/tools: .venv/made
	@echo "installing what the checks need (once)"
	@$(PIP) install -e ".[plot,progress,test,lint,cuda-gate]"
	@touch $@

.venv: .venv/made

demo: .venv/made                  ## train on real digits, and print each step
	@.venv/bin/nbprop demo

test: .venv/tools                 ## all checks: lint, types, tests; later ones run even if one fails
	@failed=0; $(MAKE) --no-print-directory lint || failed=1; \
	COVERAGE_CORE=$(CORE) .venv/bin/python -m pytest -n $(WORKERS) -q $(COVERAGE) || failed=1; \
	NUMBA_ENABLE_CUDASIM=1 .venv/bin/python -m pytest -n $(WORKERS) -q tests/cuda || failed=1; exit $$failed

example: .venv/examples           ## run one: make example NAME=xor, make example NAME=history/lenet ARGS="..."
	@.venv/bin/python examples/$(NAME).py $(ARGS)

.venv/examples: .venv/made
	@echo "installing what the examples draw and read with (once)"
	@$(PIP) install -e ".[plot,progress,examples]"
	@touch $@

test-more: .venv/tools            ## the checks that `make test` has no time for
	@failed=0; .venv/bin/python -m pytest -n $(WORKERS) -q -m more || failed=1; \
	NUMBA_ENABLE_CUDASIM=1 .venv/bin/python -m pytest -n $(WORKERS) -q -m more tests/cuda || failed=1; exit $$failed

test-long: .venv/tools            ## hours: random tests at full length; history scripts on all seeds, storing their results
	.venv/bin/python -m pytest -n $(WORKERS) -q -m "long or scaled" --long
	.venv/bin/python examples/history/results.py

wheel: .venv/release              ## dist/: source and a wheel with prebuilt kernels, some ten minutes
	@.venv/bin/python release/archives.py

test-matrix: .venv/release        ## some tests on each Python, and on the oldest dependencies: make test-matrix ONLY="3.14 oldest"
	@.venv/bin/python release/matrix.py $(if $(ONLY),--only $(ONLY) --) $(TESTS)

test-arm64: .venv/release         ## some tests on 64-bit ARM, under qemu, for hours
	@.venv/bin/python release/arm64.py $(TESTS)

.venv/release: .venv/made
	@echo "installing what builds the package (once)"
	@$(PIP) install -e ".[plot,progress,release]"
	@touch $@

docs: .venv/docs                  ## the site, build/docs/html/index.html; examples and notebooks are run
	@.venv/bin/python docs/site/build.py

.venv/docs: .venv/made
	@echo "installing what builds the site (once)"
	@$(PIP) install -e ".[plot,progress,docs]"
	@touch $@

soak: .venv/tools                 ## mixed calls for hours, in constant memory: make soak MINUTES=60
	.venv/bin/python tests/support/soak.py --minutes $(or $(MINUTES),10)

lint: .venv/tools                 ## formatter, linter, type checker, and which package may import which
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache

format: .venv/tools               ## let the formatter and the linter fix what they can
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

clean:                            ## remove what these targets made
	rm -rf .venv .venv-peers build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage

.PHONY: help demo docs example test test-more test-long test-matrix test-arm64 wheel soak lint format clean .venv
.DEFAULT_GOAL := help

# Benchmarks (docs/performance.md). The peers have an environment of their own; asv runs from it, too.
PEERS := .venv-peers/bin/python

.venv-peers: pyproject.toml
	$(PYTHON) -m venv .venv-peers
	$(PEERS) -m pip install --quiet --upgrade pip
	$(PEERS) -m pip install --quiet -e ".[bench,peers]"
	touch .venv-peers

bench: .venv .venv-peers          ## the comparison table, measured here
	.venv/bin/python benchmarks/table.py

bench-docs: .venv                 ## write the stored table into README.md and docs/performance.md
	.venv/bin/python benchmarks/document.py

bench-quick: .venv-peers          ## append this commit's results, under five minutes
	$(PEERS) benchmarks/commits.py HEAD --count 1 --again

bench-history: .venv-peers        ## measure COUNT past commits (about three minutes each)
	$(PEERS) benchmarks/commits.py HEAD --count $(or $(COUNT),12)

bench-gate:                       ## exit 1 if a ratio is more than 25 % worse than before
	$(PYTHON) benchmarks/regressions.py

dashboard: .venv-peers            ## write build/dashboard/index.html from the stored results, and its picture
	$(PEERS) benchmarks/build_dashboard.py --picture docs/dashboard.png

# On a machine without pip, or with a CUDA of its own: python benchmarks/gpu.py --here, python tests/cuda/on_gpu.py --here.
bench-gpu: .venv/cuda             ## the comparison on this machine's GPU, stored; says so if there is none
	.venv/bin/python benchmarks/gpu.py

test-gpu: .venv/cuda              ## the device tests on this machine's GPU, and under compute-sanitizer
	.venv/bin/python tests/cuda/on_gpu.py

.venv/cuda: .venv/tools
	@echo "installing the CUDA toolkit (once; some 700 MB)"
	@$(PIP) install -e ".[cuda]"
	@touch $@

.PHONY: bench-gpu test-gpu bench bench-docs bench-quick bench-history bench-gate dashboard
