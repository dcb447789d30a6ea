# The two commands of a newcomer: `make quickstart` and `make test`. Both set up .venv and reuse it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.distsub-installed
export RAY_USAGE_STATS_ENABLED := 0
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM := false

.PHONY: quickstart test test-fast soak lint docs bench clean

quickstart: $(STAMP)
	$(BIN)/distsub run sweeps/quickstart.toml --out results/quickstart
	$(BIN)/distsub report results/quickstart

# Three processes for two cores: tests of real clusters mostly wait, so others run beside them (tests/conftest.py).
test: $(STAMP) lint
	$(BIN)/python -m pytest -m "slow or not slow" -n 3 --dist worksteal --durations 15

test-fast: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Twenty kills of a driver on Ray, each of which costs a start of Ray; `make test` makes four, and twenty without Ray.
soak: $(STAMP)
	DISTSUB_KILLS=20 $(BIN)/python -m pytest -m slow -s tests/runtime/test_faults.py -k kills_of_the_driver

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# The site, in build/site. Strict: a link of a page, an anchor or a public name that is not there ends it.
docs: $(STAMP)
	rm -rf build/pages build/site && mkdir -p build/pages
	cp -r README.md CHANGELOG.md LICENSE CITATION.cff docs cluster examples sweeps benchmarks build/pages/
	$(BIN)/zensical build --strict

bench: $(STAMP)
	$(BIN)/python benchmarks/step_cost.py
	$(BIN)/python benchmarks/whole_training.py
	$(BIN)/python benchmarks/trial_start.py --out benchmarks/trial_start.json
	$(BIN)/python benchmarks/at_scale.py
	$(BIN)/python benchmarks/performance.py

# torch is installed first and alone: resolved together with the rest, pip may look at newer builds that bring CUDA.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo,dev,docs]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) results build dist *.egg-info
