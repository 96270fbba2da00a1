# make demo   set up, then train two small models on Python's own sources and compare them
# make demo-korean DATA=folder  raw Korean files to a model that writes, beside compressors: 20 minutes
# make test   set up, then lint, type check and test
# make faults kill, damage and starve real runs for half an hour; GROUP=kills for one group
# make audit  every kind of training step on a simulated Apple GPU, and large models' peaks
# make judge-check  judge all reference solutions, on a busy machine and in WebAssembly too; simulate intervals: forty minutes
# make lm-eval-check  install lm-evaluation-harness beside, and hold our model class against its own
# make bench  measure loss and attention against other ways, memory against its prediction
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
export WMTP_DATA ?= $(wildcard ../shared/data)
export WMTP_CACHE ?= $(CURDIR)/.cache

NPM_VERSION := $(shell sed -n 's/^NPM_VERSION = "\(.*\)"/\1/p' src/wmtp/verify/llama_cpp_engine.py)
LLAMA_CPP := $(WMTP_CACHE)/llama.cpp
NPM_INSTALL = timeout 180 npm install --silent --fetch-retries 1 --prefix $(LLAMA_CPP) \
	--ignore-scripts --omit=optional

.PHONY: help demo demo-korean test lint faults audit judge-check lm-eval-check bench clean
help:
	@grep '^# make' Makefile | cut -c3-

# torch first and by itself: a later, looser request for it then finds it there
$(VENV)/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "wmtp needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "Setting up $(VENV) (a few minutes the first time) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) torch
	@$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.base
	@echo "Setting up the test tools ..."
	@$(PIP_INSTALL) -e '.[test]'
	@touch $@

# llama.cpp itself, which exported files are checked with; its tests skip where npm cannot get it
$(LLAMA_CPP)/.npm-$(NPM_VERSION):
	@mkdir -p $(LLAMA_CPP)
	@if [ "$$(uname -sm)" != "Linux x86_64" ]; then echo "no llama.cpp for the tests on this system"; \
	elif ! command -v npm >/dev/null; then echo "no npm here: what needs llama.cpp is skipped"; \
	else echo "Setting up llama.cpp ..." && \
		if $(NPM_INSTALL) node-llama-cpp@$(NPM_VERSION) @node-llama-cpp/linux-x64@$(NPM_VERSION); \
		then touch $@; else echo "npm could not get llama.cpp: what needs it is skipped"; fi; fi

demo: $(VENV)/.base
	@$(BIN)/python scripts/demo.py

demo-korean:
	@test -n "$(DATA)" || { echo "Say where the Korean texts are: make demo-korean DATA=folder, with" \
		"JSONL files in folder/ko (and raw dumps in folder/ko_raw)"; exit 2; }
	@$(MAKE) --no-print-directory $(VENV)/.korean $(LLAMA_CPP)/.npm-$(NPM_VERSION)
	@$(BIN)/python scripts/demo_korean.py --data "$(DATA)"

$(VENV)/.korean: $(VENV)/.base
	@echo "Setting up what Korean corpora need ..."
	@$(PIP_INSTALL) -e '.[korean,gguf]' pyppmd sentencepiece
	@touch $@

test: $(VENV)/.test lint $(LLAMA_CPP)/.npm-$(NPM_VERSION)
	$(BIN)/python -m pytest -q -n 2

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

faults: $(VENV)/.test
	$(BIN)/python -m pytest -q -n 2 --dist loadscope tests/faults$(GROUP:%=/test_%.py)

audit: $(VENV)/.test
	$(BIN)/python scripts/audit.py

judge-check: $(VENV)/.test
	WMTP_JUDGE_CHECK=full $(BIN)/python -m pytest -q tests/evaluation/judge tests/evaluation/test_samples.py \
		tests/evaluation/test_coverage.py tests/end_to_end/test_code_suites.py

# in an environment of its own that sees the packages of the other: 136 MB that few need
LM_EVAL := $(WMTP_CACHE)/lm-eval
$(LM_EVAL)/.installed: $(VENV)/.test
	@echo "Setting up lm-evaluation-harness ..."
	@$(BIN)/python -m venv $(LM_EVAL)
	@site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
		$(BIN)/python -c "$$site" > "$$($(LM_EVAL)/bin/python -c "$$site")/parent.pth"
	@$(LM_EVAL)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt \
		-e '.[lm-eval]'
	@touch $@

lm-eval-check: $(LM_EVAL)/.installed
	$(LM_EVAL)/bin/python -m pytest -q tests/harness

bench: $(VENV)/.test
	$(BIN)/python benchmarks/loss.py
	$(BIN)/python benchmarks/greedy_equality.py
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/memory.py --once
	$(BIN)/python benchmarks/corpus_readers.py

clean:
	rm -rf $(VENV) .cache runs .pytest_cache .mypy_cache .ruff_cache
