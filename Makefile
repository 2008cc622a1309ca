# Each target works alone from a fresh clone: the first one makes .venv, which takes a few minutes.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: help setup walkthrough lab test bench figures clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with everything in it, also the command .venv/bin/ferlab

walkthrough: $(READY) ## run all notebooks in order; results go to walkthrough/
	$(VENV)/bin/ferlab walkthrough

lab: $(READY) ## open the notebooks in JupyterLab
	$(VENV)/bin/jupyter lab notebooks

test: $(READY) ## lint, types and tests
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(RUN) -m pytest --numprocesses 2

bench: $(READY) ## measure the speed beside other ways (minutes); brackets: times the fastest of its group
	$(RUN) -m pytest benchmarks/test_speed.py -s --benchmark-sort=name --benchmark-columns=min,median,rounds

figures: $(READY) ## draw the pictures of the rendered faces into figures/
	$(RUN) -m ferlab.plots

clean: ## remove .venv and the caches of the tools; runs and results stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

# The stamp is written last, so that an interrupted installation is made anew.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "ferlab needs Python 3.10 or newer, but\
	 $(PYTHON) is $$($(PYTHON) --version 2>&1): name a newer one, as in make setup PYTHON=python3.12" >&2; exit 1; }
	@if [ -d $(VENV) ] && [ ! -e $@ ]; then echo "Removing the unfinished $(VENV) ..."; rm -rf $(VENV); fi
	@echo "Making $(VENV) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv $(VENV)
	@echo "Installing ferlab and what it needs (PyTorch is large: a few minutes) ..."
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
	@echo "Ready: $(VENV)/bin/ferlab --help"
