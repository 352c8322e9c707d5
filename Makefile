# make demo: install, compile the demo model, draw a picture.  make test: install, check, test.
# make bench: compare pictures with diffusers, torch.compile, ONNX Runtime and OpenVINO on this CPU; make bench-sd15: at
# SD 1.5's size, in an hour.
# make gpu-check: on a machine with an NVIDIA GPU and nvcc, parity and comparison there, in ten minutes.
# make test-long: faults at many more moments.  make audit: look the dependencies up in a list of known weaknesses.
# make lock: write the versions and hashes that tests run with.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-long lint bench bench-sd15 gpu-check audit lock clean

demo: $(VENV)/.installed
	$(BIN)/python build.py --output-dir artifacts
	$(BIN)/python inference.py --artifacts-dir artifacts --output-dir outputs --seed 2

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest

test-long: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m long

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-bench
	mkdir -p outputs
	$(BIN)/python benchmark.py --json outputs/benchmark.json --report outputs/report

bench-sd15: $(VENV)/.installed-bench
	mkdir -p outputs
	$(BIN)/python benchmark.py --model random:sd15 --json outputs/benchmark-sd15.json --report outputs/report-sd15

gpu-check: $(VENV)/.installed-bench
	mkdir -p outputs
	$(BIN)/python benchmark.py --device cuda --model random:sd15 --backends eager,compile,tvm --steps 20 --runs 3 \
		--json outputs/gpu.json --report outputs/report-gpu

audit: $(VENV)/.installed-dev
	$(BIN)/pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/pip-audit --disable-pip --requirement requirements-lock.txt

lock: $(VENV)/.made
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --upgrade --generate-hashes --no-annotate --no-header --no-emit-package torch \
		--python-version 3.11 --python-platform x86_64-manylinux_2_28 requirements-dev.txt -o requirements-lock.txt

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: requirements.txt requirements-runtime.txt $(VENV)/.made
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# Every wheel but torch's, of which each platform has another, is checked against a hash.
$(VENV)/.installed-dev: requirements-lock.txt requirements.txt $(VENV)/.made
	$(BIN)/pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements.txt)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-lock.txt
	$(BIN)/pip check
	touch $@

$(VENV)/.installed-bench: requirements-bench.txt $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	touch $@

clean:
	rm -rf artifacts outputs .pytest_cache .hypothesis .mypy_cache .ruff_cache
