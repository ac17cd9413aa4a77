# Sets up and runs everything; `make` alone lists the targets.
#
# ACCELERATOR   cpu (default), tpu or cuda13: which JAX is installed.
#               Later calls keep what is installed.
# PYTHON        A Python 3.12 to use instead of the first one found.

VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
TOOLS := $(VENV)/.tools

ACCELERATOR ?= $(or $(shell cat $(INSTALLED) 2>/dev/null),cpu)
ifeq ($(filter cpu tpu cuda13,$(ACCELERATOR)),)
  $(error ACCELERATOR = $(ACCELERATOR) is not one of cpu, tpu, cuda13)
endif
comma := ,
EXTRAS := prepare$(addprefix $(comma),$(filter-out cpu,$(ACCELERATOR)))

UV := $(shell command -v uv 2>/dev/null)
ifdef UV
  PIP_INSTALL := uv pip install --quiet --python $(RUN)
else
  PIP_INSTALL := $(RUN) -m pip install --quiet --no-compile --disable-pip-version-check
endif
PIP_INSTALL += --constraint constraints.txt

# Bytecode stays in .venv, even where Python is told to write none: a program then starts two
# seconds sooner, and the tests start many.
export PYTHONPYCACHEPREFIX := $(CURDIR)/$(VENV)/pycache
export PYTHONDONTWRITEBYTECODE :=

# Compiled programs stay in the user's cache: a second run starts without compiling.
export JAX_COMPILATION_CACHE_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/m3ae-tpu/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0
ifeq ($(ACCELERATOR),cpu)
  export JAX_PLATFORMS ?= cpu
endif

# Each candidate is run: a pyenv shim exists also for versions that it refuses to start.
ifeq ($(origin PYTHON),command line)
  CANDIDATES := $(PYTHON)
else
  CANDIDATES := $(PYTHON) python3.12 python3 python \
    $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions/3.12.*/bin/python \
    $(HOME)/.local/share/uv/python/cpython-3.12*/bin/python3.12 \
    /usr/bin/python3.12 /usr/local/bin/python3.12 /opt/homebrew/bin/python3.12
endif

.PHONY: help install compile-tpu compile-gpu quickstart test lint map benchmark-gpu starter-model

help:
	@echo "make quickstart   set up, pre-train on the starter set, evaluate,"
	@echo "                  write runs/quickstart/report.html"
	@echo "make test         set up, run the tests"
	@echo "make lint         set up, check style and types of the files that git tracks"
	@echo "make map          set up, write the list of files in WORKSPACE.md"
	@echo "make install      set up only: .venv with the versions of constraints.txt"
	@echo "make compile-tpu  set up, and install the TPU compiler (221 MB): it compiles for TPUs on"
	@echo "                  a machine without one, and 'make test' then runs the tests that need it"
	@echo "make compile-gpu  the same for NVIDIA GPUs (732 MB)"
	@echo "make benchmark-gpu ACCELERATOR=cuda13"
	@echo "                  measure the NVIDIA GPU here, beside the model of compiled programs and"
	@echo "                  PyTorch where it is installed: runs/benchmark_gpu/benchmark_gpu.md"
	@echo "make starter-model"
	@echo "                  train starter_long (up to an hour on two cores), and put it into the"
	@echo "                  package as the model starter: m3ae_tpu/pretrained/starter"
	@echo "ACCELERATOR=tpu or ACCELERATOR=cuda13 behind any of them installs JAX for a TPU or a GPU."

# Without the tools of tests and lint, which take as long to install as all the rest.
quickstart: $(INSTALLED)
	$(RUN) -m pipelines.pretrain --config=quickstart --workdir=runs/quickstart
	$(RUN) -m pipelines.evaluate runs/quickstart
	$(RUN) -m pipelines.report runs/quickstart
	@echo "report: $(CURDIR)/runs/quickstart/report.html"

# All tests of a file run in one process: they share what they compiled.
test: install
	$(RUN) -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

compile-tpu: install
	@if [ "$$(uname -sm)" != "Linux x86_64" ]; then \
	  echo "the TPU compiler (libtpu) exists for Linux on x86-64 only: nothing was installed"; \
	elif ! $(RUN) -c 'import libtpu' 2>/dev/null; then \
	  $(PIP_INSTALL) libtpu; \
	fi

GPU_COMPILER := jax-cuda13-plugin jax-cuda13-pjrt nvidia-cuda-nvcc nvidia-cuda-nvdisasm nvidia-nvvm

compile-gpu: install
	@if [ "$$(uname -sm)" != "Linux x86_64" ]; then \
	  echo "the GPU compiler is installed on Linux on x86-64 only: nothing was installed"; \
	elif ! $(RUN) -c 'import importlib.metadata as m, sys; [*map(m.version, sys.argv[1:])]' \
	    $(GPU_COMPILER) 2>/dev/null; then \
	  $(PIP_INSTALL) --no-deps $(GPU_COMPILER); \
	fi

# First whether cuDNN takes odd numbers of tokens, and is right; the figures are taken in any case.
benchmark-gpu: install
	-JAX_PLATFORMS=cuda $(RUN) -m pytest tests/kernels/test_attention.py -k cudnn
	$(RUN) -m pipelines.benchmark_gpu --output=runs/benchmark_gpu

starter-model: $(INSTALLED)
	$(RUN) -m pipelines.pretrain --config=starter_long --workdir=runs/starter_long
	$(RUN) -m pipelines.make_starter_model --config=starter_long --model=runs/starter_long \
	  --output=m3ae_tpu/pretrained/starter --overwrite

# Only files that git tracks are checked: a user's own files here may have another style.
# Without git, all files are.
CHECKED = $(or $(shell git ls-files '*.py' 2>/dev/null),configs kernels m3ae_tpu pipelines tests)

lint: install
	@echo "ruff check";          $(RUN) -m ruff check $(CHECKED)
	@echo "ruff format --check"; $(RUN) -m ruff format --check $(CHECKED)
	@echo "pyright";             $(RUN) -m pyright --pythonpath $(RUN) $(CHECKED)

map: install
	$(RUN) tests/workspace_map.py

install: $(TOOLS)

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
	  echo "error: no Python 3.12 was found. Install one, or run:" \
	    "make $(or $(MAKECMDGOALS),install) PYTHON=/path/to/python3.12" >&2; \
	  exit 1; \
	fi; \
	set -e; \
	rm -rf $(VENV); \
	echo "installing into $(VENV) for $(ACCELERATOR) with $$python:" \
	  "about 0.8 GB, a minute or more ..."; \
	$(if $(UV),uv venv --quiet --python "$$(command -v "$$python")","$$python" -m venv) $(VENV); \
	$(PIP_INSTALL) --editable '.[$(EXTRAS)]'; \
	echo $(ACCELERATOR) > $(INSTALLED)

$(TOOLS): $(INSTALLED)
	@echo "installing the tools of tests and lint into $(VENV)"
	@$(PIP_INSTALL) --editable '.[dev,$(EXTRAS)]'
	@touch $(TOOLS)
