# make figures         run every notebook, write figures/          (FAST=1: small and quick, into figures/fast/; NAME=01: one notebook)
# make test            run the tests
# make test-floor      run the tests that touch transformers on the oldest version allowed
# make test-torchvision run the tests of families that compare with torchvision or, on the oldest transformers, need it
# make test-triton     run the tests of the GPU kernels: in Triton's interpreter, and compiled for GPUs that are not there
# make test-trained   run the tests on a language model with trained weights, SmolLM2-135M in a small SmolVLM (minutes)
# make test-lmms-eval  run lmms-eval's own command line under watch, on tiny models and a local task (minutes)
# make mutants         break the code in hundreds of places and see whether a test notices  (ONLY='...pruners.top_k*': one module)
# make mutants-left    list the breaks that no test noticed
# make family-table    run the tests of all families on the oldest and newest transformers, write their table into docs/models.md
# make type-table      look at every type of model on the oldest, the pinned and the newest transformers, write docs/types.md
# make lab             open JupyterLab in notebooks/
# make docs           build the site from executed notebooks, run first where needed: build/site/index.html   (FAST=1: small and quick)
# make lint            ruff, pyright, import-linter
# make clean           remove what the targets above wrote, but keep .venv

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FLOOR := $(VENV)/floor
NEWEST := $(VENV)/newest
TORCHVISION := $(VENV)/torchvision
TRITON := $(VENV)/triton
TRAINED := $(VENV)/trained
LMMS := $(VENV)/lmms
MUTANTS := $(VENV)/mutants
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable
INTO := $(BIN)/python -m pip install --disable-pip-version-check --no-deps --target

# Everything bundled works without network; say HF_HUB_OFFLINE=0 to load a model from the hub.
ASKED_OFFLINE := $(HF_HUB_OFFLINE)
export HF_HUB_OFFLINE ?= 1

# Tests run in as many processes as there are cores, at most four, each of which computes with one thread; which of them
# stay together, and which begin, says tests/conftest.py.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadgroup \
	--no-loadscope-reorder

.PHONY: figures test test-floor test-torchvision test-triton test-trained test-lmms-eval mutants mutants-left family-table type-table lab docs lint clean

figures: $(VENV)/.installed
	$(BIN)/visionpulse figures $(NAME) $(if $(filter-out 0,$(FAST)),--fast)

test: $(VENV)/.installed
	$(PYTEST)

test-floor: $(FLOOR)/.installed
	PYTHONPATH=$(FLOOR) $(PYTEST) -m "not alike" \
		tests/families tests/test_attention.py tests/test_decoding.py tests/test_models.py

test-torchvision: $(FLOOR)/.installed $(TORCHVISION)/.installed
	PYTHONPATH=$(TORCHVISION) $(BIN)/python -m pytest tests/families/test_recording.py tests/families/test_video.py \
		tests/families/test_video_times.py
	PYTHONPATH=$(FLOOR):$(TORCHVISION) $(BIN)/python -m pytest tests/families -k "onevision or deepseek"

test-triton: $(TRITON)/.installed
	PYTHONPATH=$(TRITON) TRITON_INTERPRET=1 $(PYTEST) tests/test_fused.py

test-trained: $(TRAINED)/.installed
	PYTHONPATH=$(TRAINED) $(BIN)/python -m pytest tests/trained

test-lmms-eval: $(LMMS)/.installed
	PYTHONPATH=$(LMMS) $(BIN)/python -m pytest tests/lmms

mutants: $(MUTANTS)/.installed
	OMP_NUM_THREADS=1 PYTHONPATH=$(abspath $(MUTANTS)) $(BIN)/python -m mutmut run $(ONLY)

mutants-left: $(MUTANTS)/.installed
	@for name in $$(PYTHONPATH=$(abspath $(MUTANTS)) $(BIN)/python -m mutmut results | grep -oE '^ +[^:]+'); do \
		PYTHONPATH=$(abspath $(MUTANTS)) $(BIN)/python -m mutmut show $$name; done

family-table: $(FLOOR)/.installed $(TORCHVISION)/.installed
	PYTHONPATH=$(FLOOR) FAMILY_TABLE=write $(BIN)/python -m pytest tests/families
	PYTHONPATH=$(FLOOR):$(TORCHVISION) FAMILY_TABLE=write $(BIN)/python -m pytest tests/families
	FAMILY_TABLE=write $(BIN)/python -m pytest tests/families

type-table: $(FLOOR)/.installed $(NEWEST)/.installed
	PYTHONPATH=$(FLOOR) TYPE_TABLE=write $(BIN)/python -m pytest tests/types
	PYTHONPATH=$(NEWEST) TYPE_TABLE=write $(BIN)/python -m pytest tests/types
	TYPE_TABLE=write $(BIN)/python -m pytest tests/types

# Somebody sits there, and may load any model; notebooks run in this folder, as under `make figures`, not in their own.
lab: export HF_HUB_OFFLINE = $(or $(ASKED_OFFLINE),0)
lab: $(VENV)/.installed
	$(BIN)/jupyter lab notebooks --MappingKernelManager.root_dir='$(CURDIR)' $(LAB)

docs: $(VENV)/.installed-docs
	$(BIN)/python docs/build.py $(if $(filter-out 0,$(FAST)),--fast)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# The stamps depend on the two files that say what is installed: edit one and the next make installs again.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) '.[test]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP_INSTALL) '.[dev]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP_INSTALL) '.[docs]'
	touch $@

$(FLOOR)/.installed: constraints-floor.txt $(VENV)/.installed
	rm -rf $(FLOOR)
	$(INTO) $(FLOOR) --requirement constraints-floor.txt
	touch $@

$(NEWEST)/.installed: constraints-newest.txt $(VENV)/.installed
	rm -rf $(NEWEST)
	$(INTO) $(NEWEST) --requirement constraints-newest.txt
	touch $@

$(TORCHVISION)/.installed: constraints-torchvision.txt $(VENV)/.installed
	rm -rf $(TORCHVISION)
	$(INTO) $(TORCHVISION) --requirement constraints-torchvision.txt
	touch $@

$(TRITON)/.installed: constraints-triton.txt $(VENV)/.installed
	rm -rf $(TRITON)
	$(INTO) $(TRITON) --requirement constraints-triton.txt
	touch $@

$(TRAINED)/.installed: constraints-trained.txt $(VENV)/.installed
	rm -rf $(TRAINED)
	$(INTO) $(TRAINED) --requirement constraints-trained.txt
	touch $@

$(MUTANTS)/.installed: constraints-mutants.txt $(VENV)/.installed
	rm -rf $(MUTANTS)
	$(INTO) $(MUTANTS) --requirement constraints-mutants.txt
	touch $@

$(LMMS)/.installed: constraints-lmms.txt $(VENV)/.installed
	rm -rf $(LMMS)
	$(INTO) $(LMMS) --requirement constraints-lmms.txt
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf build mutants *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find figures -mindepth 1 -maxdepth 1 ! -name README.md ! -name readme -exec rm -rf {} +
	find visionpulse_analysis tests notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
