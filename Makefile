# Each target sets up what it needs, so it works on a fresh machine with Python 3.11 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo

PIP := $(BIN)/pip --quiet --disable-pip-version-check

.PHONY: demo test check bench docs upgrade clean

# Everything installed, in the versions that were tested, and anew when those change. On Linux PyPI's torch brings gigabytes of
# CUDA packages; where pip is told of PyTorch's own index, by PIP_EXTRA_INDEX_URL, the CPU build comes without them.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt --editable ".[dev]"
	touch $@

# The newest versions that pyproject.toml allows. Run `make check test` before you keep the list.
upgrade: $(VENV)/installed
	$(PIP) install --upgrade --upgrade-strategy eager --editable ".[dev]"
	sed -n 1p constraints.txt > constraints.new
	$(BIN)/pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' >> constraints.new
	mv constraints.new constraints.txt
	touch $(VENV)/installed

# A data set, a training, an evaluation and a prediction from nothing, in a few minutes.
demo: $(VENV)/installed
	rm -rf $(DEMO)
	$(BIN)/das3d demo-data $(DEMO)/data
	$(BIN)/das3d train $(DEMO)/data --preset demo --out $(DEMO)/run
	$(BIN)/das3d evaluate $(DEMO)/run --data $(DEMO)/data
	$(BIN)/das3d report $(DEMO)/run
	$(BIN)/das3d predict $(DEMO)/run --data $(DEMO)/data/moulded_cover/test/dent --out $(DEMO)/predictions
	@echo "training pairs and repairs: $(DEMO)/run/pictures   all test parts, in a browser: $(DEMO)/run/report.html"

# In two halves: all engines, browsers, clusters and process groups in one process have ended in a segmentation fault.
test: $(VENV)/installed
	$(BIN)/python -m pytest --cov --cov-report= tests/test_[a-m]*.py
	$(BIN)/python -m pytest --cov --cov-append --cov-report=term tests/test_[n-z]*.py

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What every stage costs beside a reference, into docs/results/speed.md. Ten minutes, on a machine with nothing else to do.
bench: $(VENV)/installed
	$(BIN)/python benchmarks/speed.py --write docs/results/speed.md

# The documentation as a site in site/, from files on this machine alone; a warning is an error.
docs: $(VENV)/installed
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs site

clean:
	rm -rf $(DEMO) $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
