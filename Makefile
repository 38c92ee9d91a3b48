# Every command a person types. `make help` lists them.
SHELL := /bin/sh
.DEFAULT_GOAL := help
PY := .venv/bin/python

help:  ## list these commands
	@sed -n 's/^\([a-z0-9-]*\):.*##  *\(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-22s %s\n", $$1, $$2 }'

step1: .venv/.step1  ## load the model, look inside, get an answer, write out/step1/report.html
	@$(PY) -m step1_foundations demo

bench1: .venv/.step1  ## step 1's speed ladder, about 7 minutes on an idle machine
	@$(PY) -m step1_foundations bench --output step1_foundations/results/bench.json

step2: .venv/.step2  ## ask a question that needs three tool calls, in the sandbox, with the trace
	@$(PY) -m step2_tool_calling demo

bench2: .venv/.step2  ## step 2's own speed, about a minute; the accuracy table takes two hours: see its README
	@$(PY) -m step2_tool_calling.bench --output step2_tool_calling/results/speed.json

step3: .venv/.step3  ## index a small encyclopaedia and ask it three questions: one answered, one rewritten, one declined
	@$(PY) -m step3_rag demo

step3-ui: .venv/.step3  ## the same in the browser; stays in the foreground until Ctrl-C
	@$(PY) -m step3_rag ui

step4: .venv/.step4  ## teach the model to call tools: data, base, SFT, DPO, before and after; 20 minutes, resumable
	@$(PY) -m step4_finetune demo

bench4: .venv/.step4  ## step 4's training speed beside a plain SFTTrainer, about 6 minutes on an idle machine
	@$(PY) -m step4_finetune.train_bench step4_finetune/recipes/tools_sft_full.yaml --steps 6 \
	  --output step4_finetune/results/throughput.json

step5: .venv/.step5  ## serve the model behind the gateway; stays in the foreground until Ctrl-C
	@$(PY) -m step5_serving serve

step5-demo: .venv/.step5  ## the same on a free port for two requests: a streamed chat and a tool call, with cost and trace
	@$(PY) -m step5_serving demo

bench5: .venv/.step5  ## what step 5 carries, vLLM and gateway beside plain generate, about 10 minutes on an idle machine
	@$(PY) -m step5_serving bench --output step5_serving/results

fuzz5: .venv/.dev  ## 100,000 random and hostile requests to step 5's gateway, about 25 minutes
	@$(PY) tests/step5/step5_fuzz.py --requests 100000 --output step5_serving/results/fuzz.json

step5-trace: .venv/.step5  ## a local viewer for step 5's traces (Arize Phoenix, in an environment of its own)
	@$(PY) -m step5_serving.trace_viewer

tour: .venv/.dev  ## all five steps in one narrated run, and out/tour/report.html
	@$(PY) -m scripts.tour

test: .venv/.dev  ## hermetic tests: no model, no network, about two minutes
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 -m "not real"

test-real: .venv/.dev  ## tests with the real model, real servers and a real browser
	@$(PY) -m pytest -q -m real

lint: .venv/.dev  ## ruff and mypy, without changing anything
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy

format: .venv/.dev  ## let ruff reformat and repair
	@$(PY) -m ruff check --fix . && $(PY) -m ruff format .

results: .venv/.dev  ## re-render the README tables from results/*.json
	@$(PY) -m shared.results render

read: .venv/.dev  ## the repository as a book, each lesson beside its code: out/read/index.html
	@$(PY) -m scripts.read

lock:  ## put what the pyproject files ask for into requirements.lock, the rest as it is (make drift looks ahead)
	@scripts/setup.sh uv
	@env -u UV_FIND_LINKS -u PIP_FIND_LINKS .venv/bin/uv pip compile --quiet --universal --python-version 3.11 \
	  --no-emit-index-url --no-emit-find-links --no-header --no-annotate --no-emit-package llm-roadmap-shared --all-extras \
	  pyproject.toml shared/pyproject.toml step*/pyproject.toml --output-file requirements.lock
	@{ echo '# Exact versions of everything, used as constraints. Made by `make lock`; do not edit.'; \
	  cat requirements.lock; } > requirements.lock.new && mv requirements.lock.new requirements.lock

drift: .venv/.dev  ## do the newest versions still work, and which package is it if not? docs/drift.md; resumable
	@$(PY) -m scripts.drift

export: .venv/.dev  ## make a standalone repository of one step: make export STEP=3 TO=~/my-rag [NAME=my_rag]
	@$(PY) -m scripts.export "$(STEP)" "$(TO)" $(if $(NAME),--name "$(NAME)")

clean:  ## remove build leftovers and ./out
	@rm -rf out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean  ## also remove .venv (downloaded models stay in LLM_ROADMAP_HOME)
	@rm -rf .venv

# A stamp is newer than what it was made from, or the set-up runs again (seconds when nothing changed).
.venv/.%: requirements.lock pyproject.toml shared/pyproject.toml $(wildcard step*/pyproject.toml) scripts/setup.sh
	@scripts/setup.sh $*

.PHONY: help step1 bench1 step2 bench2 step3 step3-ui step4 bench4 step5 step5-demo bench5 fuzz5 step5-trace tour test test-real lint format results read lock drift export clean distclean
.PRECIOUS: .venv/.%
.NOTPARALLEL:
