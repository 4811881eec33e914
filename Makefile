# Set-up, tests and the demo. Everything lives in .venv, installed from requirements.lock.
PYTHON ?= python3
BIN := .venv/bin
SNAKEMAKE := $(BIN)/snakemake
STAMP := .venv/.installed

.PHONY: demo test end-to-end slurm lint format docs bench bench-peers gpu reference venv

demo: $(STAMP)
	$(SNAKEMAKE) demo
	@echo
	@cat results/demo/tables/perplexity.md
	@echo
	@echo "report:  results/demo/report.html   (open it in a browser; it works offline)"
	@echo "tables:  results/demo/tables/       (.csv, .md, .tex)"
	@echo "figures: results/demo/figures/      (.pdf, .svg, .png)"
	@echo "rows:    results/demo/rows.csv      (one row per run and metric)"

# two processes, of a file's tests each; what these start takes one thread, as the tests themselves do
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

end-to-end: $(STAMP)
	$(BIN)/python -m pytest -m end_to_end

slurm: $(STAMP) .slurm/.installed
	$(BIN)/python -m pytest -m slurm

.slurm/.installed: requirements-slurm.lock
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .slurm --requirement requirements-slurm.lock
	@touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check --compact-diff Snakefile workflow
	$(SNAKEMAKE) --lint

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

# what the code says of itself: functions for Python, keys of the config
reference: $(STAMP)
	for page in api:docs/api.md config:docs/configuration.md schema:workflow/config.schema.json; do \
	  $(BIN)/python -m freelunch.reference $${page%%:*} > .reference.part && mv .reference.part $${page#*:} || exit 1; \
	done

# fails on every warning, links that lead nowhere included
docs: $(STAMP)
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --nitpicky docs docs/_build
	@echo "docs: docs/_build/index.html"

bench: $(STAMP)
	$(BIN)/python -m benchmarks

gpu: $(STAMP)
	benchmarks/gpu.sh

bench-peers: $(STAMP) .peers/.installed
	$(BIN)/python -m benchmarks.peers

.peers/.installed: requirements-peers.lock
	$(PYTHON) -m venv .peers
	.peers/bin/python -m pip install --quiet --requirement requirements-peers.lock
	@touch $@

venv: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "freelunch needs Python 3.11 or later; set PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
