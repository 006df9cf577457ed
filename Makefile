# Every target sets up what it needs: a virtual environment of the project, from pinned requirements. Of its 5.7 GB,
# 3.4 are CUDA's libraries: `make demo TORCH_INDEX=<URL of an index of CPU builds>` takes torch from there, without them.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready
UV := uv==0.13.9
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# uv needs a third of pip's time, but reads none of its settings: an index that is named there is for pip.
install = { ! $(BIN)/python -m pip config list | grep -q '[.]index-url=' \
	&& $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python $(1); } \
	|| { echo "with pip, as it has an index of its own, or uv could not"; $(PIP) $(1); }
# `dvc repro` that goes on after a kill at any moment
REPRO := $(BIN)/python -m segcore.commands.repro
# What Python compiles is kept, whatever the environment says: every process would spend seconds on it.
export PYTHONDONTWRITEBYTECODE :=
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Memory that torch gives back is kept for its next tensor instead of going to the system and back: a sixth of the time.
export MALLOC_TRIM_THRESHOLD_ := 2000000000
export MALLOC_MMAP_THRESHOLD_ := 2000000000

DEMO := decouplednet decouplednet_str ficklenet ficklenet_semi

SEEDS ?= 1 2

.PHONY: demo all show report seeds curve use check-params tables test check bench voc format clean-scratch

demo: $(READY)            ## train, evaluate and compare the four systems of the papers' main claims, then show the table
	$(REPRO) $(DEMO:%=evaluate@%)
	@$(MAKE) --no-print-directory report show

all: $(READY)             ## the same with every system of params.yaml
	$(REPRO)
	@$(MAKE) --no-print-directory report show

show: $(READY)            ## the table, from what is there
	@$(BIN)/python -m segcore.commands.show

# by force, as DVC keeps the table but not the page
report: $(READY)          ## the page, from what is there; make report COMPARE=<commit>: with what changed since
	$(REPRO) --force --single-item report
ifdef COMPARE
	@$(BIN)/python -m segcore compare "$(COMPARE)"
endif

seeds: $(READY)           ## make seeds SYSTEMS="deeplab dsrg" SEEDS="1 2": results of other seeds (ANEW=1: also where code changed)
	$(BIN)/python -m segcore.commands.seeds $(SEEDS:%=--seeds %) $(SYSTEMS:%=--systems %) $(if $(ANEW),--anew)

curve: $(READY)           ## make curve SYSTEMS="deeplab dsrg": mIoU against masks, and what the next hour is best spent on
	$(BIN)/python -m segcore.commands.curve $(SYSTEMS:%=--systems %) $(MASKS:%=--masks %) $(TAGGED:%=--tagged %) $(if $(ANEW),--anew)

use: $(READY)             ## make use PROFILE=voc-mini: put a profile in place of params.yaml
	@$(BIN)/python -m segcore.commands.use_profile --profile "$(PROFILE)"

check-params: $(READY)    ## check every value of params.yaml, and make nothing
	$(REPRO) check_params

test: $(READY)            ## every test, on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: $(READY)           ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

tables: $(READY)         ## the tables of README and docs/results.md, from files
	$(BIN)/python -m segcore.commands.tables

bench: $(READY)           ## the figures of docs/performance.md
	$(BIN)/python -m benchmarks

voc: $(READY)             ## download VOC 2012 and SBD into data/VOCdevkit
	$(BIN)/python -m segcore.commands.fetch_voc --root data

clean-scratch: $(READY)   ## delete what stopped runs keep to go on from
	@$(BIN)/python -m segcore.commands.clean_scratch

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(READY): requirements.txt constraints.txt
	$(PYTHON) -m venv .venv
	@$(PIP) $(UV) || echo "$(UV) is not to be had here"
ifdef TORCH_INDEX
	$(call install,--no-deps --index-url "$(TORCH_INDEX)" $(shell grep -E '^torch(vision)?==' requirements.txt))
endif
	$(call install,-r requirements.txt -c constraints.txt)
	@touch $(READY)
