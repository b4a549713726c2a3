# Two commands matter: `make demo` and `make test`. Both set up what they need in .venv first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/cpu-py311.txt

.PHONY: help setup browser demo test lint unit e2e exactness figures training-cost handoff-cost extension chaos overload
.PHONY: worker-start overhead hostile accuracy simulation bench bench-limits bench-full clean
.DEFAULT_GOAL := help

# Containers often forbid Python to keep what it compiled. Every worker would then compile all of vLLM again, which makes
# the tests take twice as long.
export PYTHONDONTWRITEBYTECODE :=

help:  ## Show the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 24

$(VENV)/.installed: $(LOCK) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile --no-deps -r $(LOCK)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

setup: $(VENV)/.installed  ## Create .venv with every pinned package (about 3 minutes, 4 GB)

# Only where it can be had at once: elsewhere the tests that need it say how to get it. Never in the way of the others.
browser:  ## Debian's Chromium, for the tests of the status page (needs root)
	@if ! command -v chromium >/dev/null && command -v apt-get >/dev/null; then \
		echo "installing Debian's chromium, for the tests of the status page"; \
		(apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium) \
			>/dev/null 2>&1 || echo "chromium could not be installed; the tests of the status page will be skipped"; \
	fi

demo: setup  ## Train two decode modules, serve them over one prefill, play a session
	@$(BIN)/python -m examples.demo

test: lint unit e2e  ## Everything: style, types, unit tests, tests against real vLLM processes

lint: setup  ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Their models are so small that a second thread only waits for the first. Many of them wait for a clock or a socket, so
# that two processes would leave a third of two cores idle.
TEST_PROCESSES := $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n > 4 ? n : 4)))

unit: setup  ## Tests that need no vLLM process
	OMP_NUM_THREADS=1 $(BIN)/pytest tests --ignore tests/e2e -n $(TEST_PROCESSES) --dist worksteal --durations 10

e2e: setup  ## Tests against real vLLM processes
	$(BIN)/pytest tests/e2e --durations 25

exactness: setup  ## 200 random sessions and all architectures, every token equal to the reference (15 to 40 minutes)
	$(BIN)/pytest tests/e2e/test_architectures.py tests/e2e/test_sessions.py --sessions 200 --architectures all

figures: setup  ## The accuracy table of the README (10 to 60 minutes; resumes where it stopped)
	$(BIN)/python -m examples.demo.compare

training-cost: setup  ## The table of docs/training.md: a step against TRL's SFTTrainer (about 10 minutes)
	$(BIN)/python -m experiments.training_cost

handoff-cost: setup  ## The tables of docs/handoff.md: decode speed, a session's second turn (under 10 minutes)
	$(BIN)/python -m experiments.handoff_cost

worker-start: setup  ## What a worker's start costs, with a forked engine and a spawned one (5 minutes)
	$(BIN)/python -m experiments.worker_start

extension: setup  ## The first table of docs/extension.md: next turns with eager extension and without (5 minutes)
	$(BIN)/python -m experiments.extension

chaos: setup  ## Kill and stop workers at random while sessions run (25 minutes); the table of docs/chaos.md
	$(BIN)/python -m experiments.chaos

overload: setup  ## The table of docs/overload.md: five times the load that workers can serve (about 10 minutes)
	$(BIN)/python -m experiments.overload

overhead: setup  ## The tables of docs/overhead.md: what the router adds (about 10 minutes)
	$(BIN)/python -m experiments.overhead

hostile: setup  ## The table of docs/security.md: 10,000 hostile requests at real workers (about 15 minutes)
	$(BIN)/python -m experiments.hostile

accuracy: setup  ## The table of docs/accuracy.md (hours on a small CPU; resumes where it stopped)
	$(BIN)/python -m experiments.accuracy run
	$(BIN)/python -m experiments.accuracy table

simulation: setup  ## The figures of docs/simulation.md, but for the cluster's (about 20 minutes)
	$(BIN)/python -m experiments.simulation react
	$(BIN)/python -m experiments.simulation reflexion
	$(BIN)/python -m experiments.simulation tool_heavy
	$(BIN)/python -m experiments.simulation models
	$(BIN)/python -m experiments.simulation day
	$(BIN)/python -m experiments.simulation divisions

bench: setup  ## Two systems on one workload, with a report in artifacts/bench/short (about 15 minutes)
	$(BIN)/python -m experiments.bench short

bench-limits: setup  ## The table and plot of README.md (18 hours on two cores; resumes)
	$(BIN)/python -m experiments.bench limits
	$(BIN)/python -m experiments.bench publish artifacts/bench/limits artifacts/bench/limits-more

bench-full: setup  ## More systems and loads, for docs/bench-results.md (a day on two cores; resumes)
	$(BIN)/python -m experiments.bench full
	$(BIN)/python -m experiments.bench publish artifacts/bench/full

clean:  ## Remove what the demo made; keeps .venv, and what experiments and benchmarks did in artifacts/
	rm -rf logs $(addprefix artifacts/,base data modules full-fine-tuning compare.json demo.json)
