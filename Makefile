# One command each, from a fresh clone: `make demo`, `make test`. `make help` lists the rest.
#
#   VENV=path          another virtual environment than .venv
#   PYTHON=python3.12  another interpreter (3.11 or newer) to make it from
#   CONSTRAINTS=file   another constraints file, CONSTRAINTS= for none
#   EXTRAS=dev,train   other optional groups of pyproject.toml
#   IMAGE=photo.png    your own picture for `make demo`
#   BLENDER_PYTHON=python3.11  the interpreter for `make blender`: bpy is built for 3.11 only

VENV ?= .venv
PYTHON ?= python3
EXTRAS = dev
IMAGE = assets/images/cactus_pot.png
MODEL = assets/nova3d-mini
OUT = outputs/demo

# A machine without an NVIDIA GPU gets the torch that the tests were run with.
GPU := $(shell nvidia-smi >/dev/null 2>&1 && echo yes)
CONSTRAINTS ?= $(if $(GPU),,constraints-cpu.txt)

PY := $(VENV)/bin/python
# The code of this clone, whichever clone a shared environment was made for.
export PYTHONPATH := $(CURDIR)
STAMP := $(VENV)/.installed
# open_clip for its tests, beside the torch it fits; requirements-open-clip.txt says why not in $(VENV) itself.
OPEN_CLIP := $(if $(CONSTRAINTS),$(VENV)/open_clip/.installed)

# Optional extras with tests of their own, in an environment apart: they are large, and `make test` needs none.
EXTRAS_VENV = .venv-extras
TESTED_EXTRAS = adam8bit,app,browser,mcubes,mesh2sdf,notebook,ray,video,wandb,xatlas

# Blender is GPL and needs its own Python and NumPy: an environment and a program apart (configs: engine.python).
BLENDER_VENV = .venv-blender
BLENDER_PYTHON = python3.11
BLENDER_STAMP := $(BLENDER_VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-extras lint docs doctor blender clean

help:
	@echo "make demo              set up, then one picture to a textured mesh with the bundled mini model ($(OUT)),"
	@echo "                       and 16 true views of a scan to a mesh ($(OUT)-views)"
	@echo "make demo IMAGE=x.png  the same with your own picture"
	@echo "make test              set up, then lint, types, docs and all tests that need no GPU and no network"
	@echo "make test-extras       the tests of optional extras ($(TESTED_EXTRAS)), in $(EXTRAS_VENV)"
	@echo "make setup             the virtual environment only ($(VENV)); costs nothing when it is up to date"
	@echo "make lint              ruff check, ruff format --check, codespell, mypy"
	@echo "make docs              the documentation as HTML (build/docs); warnings are errors"
	@echo "make blender           the Cycles render engine: Blender 4.5 as a module into $(BLENDER_VENV) (about 1 GB)"
	@echo "make doctor            what this machine has and lacks"
	@echo "make clean             remove caches, build files and the outputs of the demo; $(VENV) stays"

setup: $(STAMP)

$(STAMP): pyproject.toml setup.py constraints-cpu.txt .ci/install.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: '$(PYTHON)' is missing or older than Python 3.11; name a newer one: make PYTHON=python3.12" >&2; exit 2; }
	@echo "Set-up: nova3d[$(EXTRAS)] with torch, diffusers and transformers into $(VENV)."
ifeq ($(strip $(CONSTRAINTS)),)
	@echo "No constraints ($(if $(GPU),an NVIDIA GPU was found,CONSTRAINTS is empty)): pip picks the newest torch; its CUDA build takes several GB."
else
	@echo "Constraints: $(CONSTRAINTS) ($$(tr '\n' ' ' <$(CONSTRAINTS)| sed 's/ $$//')$(if $(GPU),,; no NVIDIA GPU was found))."
	@echo "About 1.6 GB and 2 minutes where the package index serves the CPU build of torch. Where it serves the CUDA"
	@echo "build, which runs on a CPU too, several GB: set PIP_EXTRA_INDEX_URL to the CPU index that PyTorch's install"
	@echo "page names and run make again."
endif
	$(PYTHON) -m venv $(VENV)
	$(PY) .ci/install.py "$(EXTRAS)" $(if $(strip $(CONSTRAINTS)),-c $(CONSTRAINTS))
	@$(PY) -c 'import torch; print(f"Installed: torch {torch.__version__}, CUDA {torch.version.cuda or None}")'
	@touch $@

demo: $(STAMP)
	$(PY) -m nova3d generate "$(IMAGE)" --model "$(MODEL)" --out "$(OUT)"
	@echo
	@echo "The fusion alone, from 16 true views of a scan whose label is legible (CC BY 4.0, Google Research):"
	$(PY) -m nova3d reconstruct assets/gso30-sample/oil --layout frames --assume cameras=syncdreamer16 \
	  --config draft --out "$(OUT)-views/tube.glb" optim.steps=150

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/codespell
	$(PY) -m mypy

docs: export OMP_NUM_THREADS = 1
docs: export HF_HUB_OFFLINE = 1
docs: $(STAMP)
	$(PY) -m sphinx -q -W --keep-going -d build/doctrees docs build/docs

test: export OMP_NUM_THREADS = 1
test: export HF_HUB_OFFLINE = 1
test: lint docs $(OPEN_CLIP)
	$(if $(OPEN_CLIP),PYTHONPATH=$(dir $(OPEN_CLIP)):$(CURDIR) $(PY) -m pytest tests/models/test_image_encoder.py tests/metrics/test_perceptual.py)
	$(PY) -m pytest -n 2 --dist worksteal

test-extras: export OMP_NUM_THREADS = 1
test-extras:
	$(MAKE) setup VENV=$(EXTRAS_VENV) EXTRAS=dev,$(TESTED_EXTRAS)
	$(EXTRAS_VENV)/bin/python -m pytest -m extras

$(VENV)/open_clip/.installed: requirements-open-clip.txt $(STAMP)
	$(PY) -m pip install -q --no-deps --upgrade --target $(dir $@) -r requirements-open-clip.txt
	@touch $@

doctor: $(STAMP)
	$(PY) -m nova3d doctor

blender: $(BLENDER_STAMP)
	@$(BLENDER_VENV)/bin/python -I nova3d/rendering/blender_worker --check

$(BLENDER_STAMP): requirements-blender.txt
	@$(BLENDER_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
	  echo "error: '$(BLENDER_PYTHON)' is missing or not Python 3.11, which Blender's module needs;" \
	    "name one: make blender BLENDER_PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(BLENDER_PYTHON) -m venv $(BLENDER_VENV)
	$(BLENDER_VENV)/bin/python -m pip install -q -r requirements-blender.txt
	@$(BLENDER_VENV)/bin/python -I nova3d/rendering/blender_worker --check >/dev/null
	@touch $@

clean:
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis outputs/demo outputs/demo-views
	find nova3d tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
