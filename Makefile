# Everything runs in .venv, made with the system's python3 (>= 3.11); uv is used where present.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS := runs/quickstart

.PHONY: install demo test lint clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "distcam_jax needs Python >= 3.11; name one: make $(or $(MAKECMDGOALS),install) PYTHON=python3.12"; exit 1; }
	@echo "installing into $(VENV) ..."
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --allow-existing --python "$$(command -v $(PYTHON))" $(VENV) && \
	  uv pip install --quiet --python $(BIN)/python -e '.[dev]'; \
	else \
	  $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'; \
	fi
	@touch $@

# Trains both objectives on the built-in digits side by side, evaluates them together and says where the report is.
# On the CPU, wherever it runs: two processes would compete for one accelerator's memory.
demo: export JAX_PLATFORMS := cpu
demo: install
	@mkdir -p $(RUNS)
	@echo "training two networks: softmax in the background (log: $(RUNS)/softmax.log), metric here"
	@$(BIN)/python train.py --config=configs/quickstart.py:softmax --workdir=$(RUNS)/softmax >$(RUNS)/softmax.log 2>&1 & \
	  softmax=$$!; trap 'kill $$softmax 2>/dev/null || true' EXIT; \
	  $(BIN)/python train.py --config=configs/quickstart.py:metric --workdir=$(RUNS)/metric && \
	  { wait $$softmax || { tail -n 3 $(RUNS)/softmax.log; exit 1; }; }
	$(BIN)/python evaluate.py --config=configs/quickstart.py:metric --workdir=$(RUNS)/metric --compare=$(RUNS)/softmax

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

test: lint
	$(BIN)/python -m pytest -q -n 2 --dist=worksteal

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
