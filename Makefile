# Two commands on a new machine: `make demo` (set-up and a real study) and `make test` (set-up and the tests).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-stand-ins lint clean

# Installed once, and again whenever pyproject.toml changes: where there is an NVIDIA card, with the PyTorch that its
# driver can run.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $$($(PYTHON) training/cuda/torch_build.py) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/shoal run studies/demo.yaml

# Two processes with a thread each: threads that wait for one another's cores take longer than both.
# In order of files: the long ones come first, so that both processes end together.
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 20

# The integration tests again on a card's branches, with what tests/stand_ins/ puts in place of CUDA's parts: on a CPU.
# Benchmarks are left out: they compare this CPU with itself.
STAND_INS ?= varlen,cuda_accelerator
test-stand-ins: $(VENV)/.installed-test
	SHOAL_STAND_INS=$(STAND_INS) PYTHONPATH=$(CURDIR)/tests/stand_ins/site OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
		tests/integration --ignore-glob '*benchmark*' --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 20

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) outputs build *.egg-info
