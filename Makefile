# make demo     the whole pipeline on the shipped baseline     make check   lint, format and types
# make test     the tests                                  make data    the digits data set
# make test-oldest    the tests with the oldest torch, torchvision and numpy, in .venv-oldest
# PYTHON chooses the Python; a Detectron2, AdelaiDet and torch that it already imports are used.
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
# Constraints that come before requirements/constraints.txt; none for the newest versions.
FIRST_PINS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
PINS := $(abspath $(VENV))/constraints.txt
PIP := PIP_CONSTRAINT="$(PINS)" "$(BIN)/python" -m pip install -qq --disable-pip-version-check
INPUTS := setup.py pyproject.toml $(wildcard requirements/*.txt) \
	tools/make_venv.py tools/install_detectron2.py

.PHONY: setup test test-oldest check demo data baseline clean

setup: $(STAMP)

# editable_mode=compat is a plain path entry: this checkout then comes before any d2prune that the
# chosen Python has, which setuptools' import hook would let win.
$(STAMP): $(INPUTS)
	@echo "setting up $(VENV): downloads some 3 GB (torch) the first time"
	"$(PYTHON)" tools/make_venv.py "$(VENV)" $(FIRST_PINS)
	$(PIP) torch torchvision "setuptools<81" wheel
	$(PIP) --config-settings editable_mode=compat --editable ".[all]"
	PIP_CONSTRAINT="$(PINS)" "$(BIN)/python" tools/install_detectron2.py
	@touch "$@"

test: setup
	"$(BIN)/python" -m pytest $(PYTEST_ARGS)

test-oldest:
	$(MAKE) test VENV=.venv-oldest FIRST_PINS=requirements/oldest.txt

check: setup
	"$(BIN)/python" -m ruff check .
	"$(BIN)/python" -m ruff format --check .
	"$(BIN)/python" -m mypy

demo: setup
	"$(BIN)/python" tools/demo.py

data: setup
	"$(BIN)/python" tools/make_digits.py --output datasets/digits

baseline: setup
	"$(BIN)/python" tools/train_net.py --config-file configs/BlendMask/digits_R_18.yaml

# Leaves datasets/ and output/ alone: they hold what took long to make.
clean:
	rm -rf "$(VENV)" .venv-oldest build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
