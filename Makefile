# The whole interface: make run · test · check · bench · docs · oracle · serve · clean.
# Every recipe uses paths relative to this folder, so that its name may hold spaces.

MODEL ?= smollm2
PROMPT ?= Why does a steam engine need a stoker? Answer in three sentences.
ARGS ?=
# Most tests use one core, or wait. More processes than cores gain nothing, and each holds its own models.
TEST_PROCESSES ?= 2
PORT ?= 8000
# Through the environment, so that quotes in a prompt reach the program as they were written.
export MODEL PROMPT PORT

PYTHON_IN_VENV := .venv/bin/python
INSTALLED := .venv/stamps/installed
TEST_INSTALLED := .venv/stamps/test
CHECK_INSTALLED := .venv/stamps/check
NATIVE_SOURCES := $(wildcard CMakeLists.txt pyproject.toml native/*.cc native/*.h native/*/*.cc native/*/*.h)

.DEFAULT_GOAL := help
.PHONY: help run serve test test-fast check bench docs oracle clean

help:
	@echo "make run    [MODEL=smollm2] [PROMPT='...'] [ARGS='--max-tokens 50']   set up, build, fetch, answer a question"
	@echo "make serve  [MODEL=smollm2] [PORT=8000] [ARGS='--log-prompts']   the same behind an OpenAI-compatible server"
	@echo "make test   [ARGS='-k name'] [TEST_PROCESSES=2]   set up, fetch the test models, run every test"
	@echo "make check  ruff and mypy"
	@echo "make bench  Stoker beside llama.cpp on this machine: JSON, table and plot"
	@echo "make docs   write the generated reference pages and the README's tables"
	@echo "make oracle write the test goldens that need torch, in an environment of its own"
	@echo "make clean  remove everything that was built; downloaded models stay"

.venv/stamps/python:
	@python=$$(scripts/find-python) && "$$python" -m venv .venv
	@$(PYTHON_IN_VENV) -m pip install --quiet --disable-pip-version-check --upgrade pip
	@mkdir -p .venv/stamps && touch $@

# Without build isolation the CMake build folder is reused, so that a change compiles only what it touches.
$(INSTALLED): .venv/stamps/python $(NATIVE_SOURCES)
	@scripts/ensure-compiler
	@echo "stoker: building (the first time takes a minute or two)" >&2
	@$(PYTHON_IN_VENV) -m pip install --quiet --disable-pip-version-check \
		"scikit-build-core>=0.10" "nanobind>=2.4" "cmake>=3.26" ninja
	@PATH="$$PWD/.venv/bin:$$PATH" $(PYTHON_IN_VENV) -m pip install --quiet --disable-pip-version-check \
		--no-build-isolation --editable .
	@$(PYTHON_IN_VENV) -m compileall -q src/stoker  # pip compiles what it copies, not what stays here: 80 ms a start
	@touch $@

$(TEST_INSTALLED): $(INSTALLED) pyproject.toml
	@$(PYTHON_IN_VENV) -c 'import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["test"]))' > .venv/stamps/test-requirements.txt
	@$(PYTHON_IN_VENV) -m pip install --quiet --disable-pip-version-check -r .venv/stamps/test-requirements.txt
	@touch $@

$(CHECK_INSTALLED): $(TEST_INSTALLED) pyproject.toml
	@$(PYTHON_IN_VENV) -c 'import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["check"]))' > .venv/stamps/check-requirements.txt
	@$(PYTHON_IN_VENV) -m pip install --quiet --disable-pip-version-check -r .venv/stamps/check-requirements.txt
	@touch $@

run: $(INSTALLED)
	@$(PYTHON_IN_VENV) -m stoker run "$$MODEL" "$$PROMPT" $(ARGS)

# MODEL may name several, separated by spaces. The interpreter becomes this process, so that signals reach it.
serve: $(INSTALLED)
	@exec $(PYTHON_IN_VENV) -m stoker serve $$MODEL --port "$$PORT" $(ARGS)

test: $(TEST_INSTALLED)
	@scripts/install-neon-tools
	@scripts/install-chromium
	@scripts/install-postgresql
	@scripts/fetch-test-models $(PYTHON_IN_VENV)
	@$(PYTHON_IN_VENV) -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: $(TEST_INSTALLED)
	@$(PYTHON_IN_VENV) -m pytest -m "not slow and not model" $(ARGS)

check: $(CHECK_INSTALLED)
	@$(PYTHON_IN_VENV) -m ruff check src tests bench scripts
	@$(PYTHON_IN_VENV) -m mypy

bench: $(INSTALLED)
	@bench/peers/llama_cpp.sh $(PYTHON_IN_VENV) || echo "stoker: llama.cpp could not be built; it is left out" >&2
	@$(PYTHON_IN_VENV) -m bench.run $(ARGS)

docs: $(INSTALLED)
	@$(PYTHON_IN_VENV) scripts/write_reference.py
	@$(PYTHON_IN_VENV) -m bench.report

oracle: $(INSTALLED)
	@scripts/write-goldens $(PYTHON_IN_VENV)

clean:
	rm -rf .venv .venv-oracle bench/.venv-llama build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
	rm -f src/stoker/_native*.so
	find src tests bench scripts -name __pycache__ -type d -prune -exec rm -rf {} +
