# make demo   sets up everything and phases the example crystal
# make test   sets up everything and runs all checks and tests
# make test-ccp4i2   the same for the plugin in the Django release of ccp4i2, in an environment of its own

PYTHON ?= python3
VENV ?= .venv
# tests run at once
JOBS ?= 2
VENV_CCP4I2 ?= .venv-ccp4i2
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-ccp4i2 clean

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
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e .
	touch $@

$(VENV)/.installed-for-tests: $(VENV)/.installed
	$(PIP_INSTALL) -e '.[test]'
	touch $@

# ccp4i2 runs the executable ml_phaser of $(VENV); CCP4I2_CLASSIC=FOLDER adds the classic release's sources to the test
test-ccp4i2: export OMP_NUM_THREADS = 1
test-ccp4i2: $(VENV)/.installed $(VENV_CCP4I2)/.installed
	PATH="$(abspath $(BIN)):$$PATH" PYTHONPATH="$(CURDIR)" $(VENV_CCP4I2)/bin/python -m pytest tests/ccp4i2

$(VENV_CCP4I2)/.installed: Makefile
	$(PYTHON) -m venv $(VENV_CCP4I2)
	$(VENV_CCP4I2)/bin/python -m pip install --quiet --disable-pip-version-check ccp4i2==3.0.1 'pytest>=8'
	touch $@

clean:
	rm -rf $(VENV) $(VENV_CCP4I2) demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
