# Sets up and runs everything; `make` alone lists the targets.
#
# ACCELERATOR   cpu (default), tpu or cuda13: which JAX is installed. Later calls keep what is installed.
# PYTHON        A Python 3.12 to use instead of the first one found.

VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

ACCELERATOR ?= $(or $(shell cat $(INSTALLED) 2>/dev/null),cpu)
ifeq ($(filter cpu tpu cuda13,$(ACCELERATOR)),)
  $(error ACCELERATOR = $(ACCELERATOR) is not one of cpu, tpu, cuda13)
endif
comma := ,
EXTRAS := dev,prepare$(addprefix $(comma),$(filter-out cpu,$(ACCELERATOR)))

# Compiled programs stay in the user's cache: a second run starts without compiling.
export JAX_COMPILATION_CACHE_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/m3ae-tpu/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0
ifeq ($(ACCELERATOR),cpu)
  export JAX_PLATFORMS ?= cpu
endif

# Each is run, not only looked up: a pyenv shim exists for versions that it then refuses to start.
ifeq ($(origin PYTHON),command line)
  CANDIDATES := $(PYTHON)
else
  CANDIDATES := $(PYTHON) python3.12 python3 python \
    $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions/3.12.*/bin/python \
    $(HOME)/.local/share/uv/python/cpython-3.12*/bin/python3.12 \
    /usr/bin/python3.12 /usr/local/bin/python3.12 /opt/homebrew/bin/python3.12
endif

.PHONY: help install compile-tpu quickstart test lint

help:
	@echo "make quickstart   set up, pre-train on the starter set, evaluate, write runs/quickstart/report.html"
	@echo "make test         set up, run the tests"
	@echo "make lint         set up, check style and types"
	@echo "make install      set up only: .venv with the versions of constraints.txt"
	@echo "make compile-tpu  set up, with the compiler for TPUs (221 MB): kernels can then be compiled without one"
	@echo "ACCELERATOR=tpu or ACCELERATOR=cuda13 behind any of them installs JAX for a TPU or a GPU."

# A quarter of a batch at a time stays in a CPU's caches: a fifth less time, the same update.
quickstart: install
	$(RUN) -m pipelines.pretrain --config=quickstart --workdir=runs/quickstart \
	  $(if $(filter cpu,$(ACCELERATOR)),--optimizer.accumulation_steps=4)
	$(RUN) -m pipelines.evaluate runs/quickstart
	$(RUN) -m pipelines.report runs/quickstart
	@echo "report: $(CURDIR)/runs/quickstart/report.html"

# Whole files go to a process, as tests of one file share what they compiled.
test: compile-tpu
	$(RUN) -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

# Its wheels are for Linux on x86-64; elsewhere the tests that need it say so and are left out.
compile-tpu: install
	@if [ "$$(uname -sm)" != "Linux x86_64" ]; then exit 0; fi; \
	$(RUN) -c 'import libtpu' 2>/dev/null || \
	if command -v uv >/dev/null 2>&1; then \
	  uv pip install --quiet --python $(RUN) --constraint constraints.txt libtpu; \
	else \
	  $(RUN) -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt libtpu; \
	fi

lint: install
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m pyright --pythonpath $(RUN)

install: $(INSTALLED)

# The stamp holds the accelerator's name: asking for another one installs again.
ifneq ($(ACCELERATOR),$(shell cat $(INSTALLED) 2>/dev/null))
.PHONY: $(INSTALLED)
endif

$(INSTALLED): constraints.txt pyproject.toml
	@python=; \
	for candidate in $(CANDIDATES); do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then \
	    python="$$candidate"; break; \
	  fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "error: no Python 3.12 found. Install one, or run: make $(or $(MAKECMDGOALS),install) PYTHON=/path/to/python3.12" >&2; \
	  exit 1; \
	fi; \
	set -e; \
	rm -rf $(VENV); \
	if command -v uv >/dev/null 2>&1; then \
	  echo "installing into $(VENV) for $(ACCELERATOR) with uv and $$python ..."; \
	  uv venv --quiet --python "$$(command -v "$$python")" $(VENV); \
	  uv pip install --quiet --python $(RUN) --constraint constraints.txt --editable '.[$(EXTRAS)]'; \
	else \
	  echo "installing into $(VENV) for $(ACCELERATOR) with pip and $$python: about 0.9 GB, a minute or more ..."; \
	  "$$python" -m venv $(VENV); \
	  $(RUN) -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'; \
	fi; \
	echo $(ACCELERATOR) > $(INSTALLED)
