# The ways in. Everything installs into .venv, once: a second call installs nothing.
PYTHON ?= python3
BIN := .venv/bin
# A suite starts this program a hundred times: compiled once and not each time, also where the machine's setting is not
# to keep what Python compiled.
export PYTHONDONTWRITEBYTECODE :=
# Two processes of tests with a thread each, so that none waits for a core. The tests of a file share what is costly
# and stay together, in the order of tests/conftest.py.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: run demo test check bench docs docker-check format screenshots tour matrix clean

run: .venv/installed  ## the page on http://127.0.0.1:7860
	@echo "Starting LoRA Studio..."
	@$(BIN)/python app.py

demo: .venv/installed  ## the main job without a browser: train a persona, compare base and adapter
	$(BIN)/python -m lora_studio.demo

test: .venv/installed-dev chromium  ## everything, browser tests included
	$(PYTEST)

check: .venv/installed-dev  ## format, lint, types and the fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(MAKE) --no-print-directory -j4 --output-sync=target check-page check-jobs check-models check-data check-types

# Each part imports what it needs alone: gradio; torch and what stands on it; neither. Those of the page and of jobs wait
# for processes now and then, so that four run at a time.
FAST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow and not real"
MODELS := tests/engine tests/demo_model tests/test_learning.py tests/chat/test_votes.py tests/data/test_ollama_template.py \
  tests/data/test_packing.py tests/data/test_real.py
JOBS := tests/jobs tests/runs tests/cli tests/config tests/models tests/evaluate tests/export tests/chat
check-page:
	$(FAST) -p no:hypothesispytest --ignore=tests/data $(JOBS:%=--ignore=%) $(MODELS:%=--ignore=%)
check-jobs:
	$(FAST) -p no:hypothesispytest $(JOBS) $(MODELS:%=--ignore=%)
check-models:
	$(FAST) $(MODELS)
check-data:
	$(FAST) tests/data $(MODELS:%=--ignore=%)
check-types:
	$(BIN)/mypy lora_studio tools app.py
.PHONY: check-page check-jobs check-models check-data check-types

docker-check: .venv/installed-dev  ## what can be checked of the image without Docker: lint, its steps, its page; minutes
	$(BIN)/python -m tests.docker_check

# The versions and hashes of all packages, for every system: one file with torch as PyPI has it (CUDA on Linux), and one
# without torch and CUDA, for the builds of torch that have an index of their own. Said by the index itself, not made here.
LOCK := $(BIN)/uv pip compile -q requirements.txt --universal --python-version 3.11 --generate-hashes \
  --custom-compile-command "make lock"
lock: .venv/installed-dev  ## requirements-cuda.lock and requirements-cpu.lock from requirements.txt
	$(LOCK) -o requirements-cuda.lock
	$(LOCK) -o requirements-cpu.lock $$(grep -oE '^(torch|triton|nvidia|cuda)[a-z0-9-]*==' requirements-cuda.lock \
	  | grep -v '^nvidia-ml-py==' | sed 's/==$$//; s/^/--no-emit-package /')

audit: .venv/installed-dev  ## whether a locked package has a known hole; fails where the list can't be asked
	$(BIN)/python -m tests.audit
.PHONY: lock audit

format: .venv/installed-dev  ## formats and mends what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

matrix: .venv/installed-dev  ## every architecture beside plain transformers and peft, into docs/architectures.md; minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.matrix --table docs/architectures.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.families --write

bench: .venv/installed-dev  ## every benchmark's figures into docs/measured.md; at most 25 minutes, on a quiet machine
	$(BIN)/python -m benchmarks.all --table docs/measured.md

docs: .venv/installed-dev  ## the documentation as a site, into site/; its generated parts are written first
	$(BIN)/python -m tests.readme
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

screenshots: .venv/installed-dev chromium tour  ## every tab at two widths, into screenshots/, and the pictures of docs/
	$(BIN)/python -m tests.screenshots

tour: .venv/installed-dev chromium  ## the moving picture and one of each tab, into docs/images/; minutes
	$(BIN)/python -m tools.tour

chromium: .venv/installed-dev
	@command -v chromium >/dev/null || ( [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -qq && apt-get install -y -qq chromium >/dev/null ) || $(BIN)/playwright install chromium
.PHONY: chromium

.venv/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("LoRA Studio needs Python 3.11 or newer: PYTHON=python3.12 make run")'
	@echo "Making the environment .venv"
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/installed: .venv/python requirements.txt
	@$(BIN)/python tools/install.py requirements.txt
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	@$(BIN)/python tools/install.py requirements-dev.txt
	@touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache screenshots site
