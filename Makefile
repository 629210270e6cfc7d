# make demo   sets up everything and phases the example crystal
# make test   sets up everything and runs all checks and tests

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test clean

demo: $(VENV)/.installed
	rm -rf demo && mkdir demo
	$(BIN)/ml_phaser hklin examples/peptide.mtz mapout demo/peptide.map
	$(BIN)/ml_phaser compare hklin demo/peptide.mtz xyzin examples/peptide.pdb jsonout demo/agreement.json
	@$(BIN)/python -c 'import json, sys; cc = json.load(open("demo/agreement.json"))["agreement"]["map_cc"]; \
	print(f"\nThe map in demo/peptide.map agrees with the simulated truth to CC {cc:.3f} (0.8 wanted)."); \
	sys.exit(cc < 0.8)'

# many small computations: threads would only wait for each other
test: export OMP_NUM_THREADS = 1
test: $(VENV)/.installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e .
	touch $@

$(VENV)/.installed-for-tests: $(VENV)/.installed
	$(PIP_INSTALL) -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
