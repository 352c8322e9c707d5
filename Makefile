# make demo: install, compile the demo model, draw a picture.  make test: install, check, test.
# make bench: compare with diffusers, torch.compile and OpenVINO on this CPU.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench clean

demo: $(VENV)/.installed
	$(BIN)/python build.py --output-dir artifacts
	$(BIN)/python inference.py --artifacts-dir artifacts --output-dir outputs --seed 2

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-bench
	mkdir -p outputs
	$(BIN)/python -m benchmarks.cpu --json outputs/benchmark.json

$(VENV)/.installed: requirements.txt requirements-runtime.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(VENV)/.installed-bench: requirements-bench.txt $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	touch $@

clean:
	rm -rf artifacts outputs .pytest_cache .hypothesis .mypy_cache .ruff_cache
