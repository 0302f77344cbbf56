# make quickstart   set up and do the main job on real input
# make test         run the tests
# make test-tflite  run the runtimes' tests with tflite-runtime
# make test-devices run on emulated boards and software drivers what can be had of them (1.3 GB, 10 minutes)
# make check        every static check: format, lint, types, imports
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

export TF_CPP_MIN_LOG_LEVEL ?= 3
# TensorFlow looks for a GPU at every start otherwise, and says at length that there is none.
export CUDA_VISIBLE_DEVICES ?= -1

.PHONY: quickstart test test-tflite test-devices check format clean

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "edgelm needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "python3 cannot make a virtual environment: install python3-venv"; exit 1; }
	@echo "Installing edgelm with its conversion tools into $(VENV) (about 600 MB to download, one to three minutes) …"
	@$(PIP) --editable '.[convert,litert,onnx]'
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready
	@echo "Installing what the tests and checks need …"
	@$(PIP) --editable '.[dev]'
	@touch $@

quickstart: $(VENV)/ready
	@PATH="$(abspath $(BIN)):$$PATH" bash examples/quickstart.sh

test: $(VENV)/ready-dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

# The runtime of old images, tflite-runtime, needs CPython 3.11 and NumPy 1: an environment of its own.
$(VENV)-tflite/ready: pyproject.toml
	@$(PYTHON) -m venv $(VENV)-tflite
	@echo "Installing tflite-runtime beside NumPy 1 into $(VENV)-tflite …"
	@$(VENV)-tflite/bin/python -m pip install --disable-pip-version-check --quiet \
	  --editable '.[tflite,litert,onnx]' 'onnx<1.19' 'pytest>=8.3' 'hypothesis>=6.100'
	@touch $@

test-tflite:
	@if $(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 12))'; then $(MAKE) $(VENV)-tflite/ready && \
	  $(VENV)-tflite/bin/python -m pytest -q tests/runtimes/test_contract.py tests/runtimes/test_device.py tests/runtimes/test_verify.py; \
	else echo "Skipped: tflite-runtime has no wheel for $$($(PYTHON) --version)"; fi

# Raspberry Pis in QEMU, the GPU paths on a Vulkan driver in software, Qualcomm's NPU on its emulator.
test-devices: $(VENV)/ready-dev
	$(BIN)/python tests/devices/setup.py
	$(BIN)/python -m pytest -q -m devices tests/devices

check: $(VENV)/ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(VENV)/ready-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(VENV)-tflite build
