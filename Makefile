# Every target sets up what it needs: a virtual environment of the project, from pinned requirements.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test check bench report use voc format

demo: $(READY)            ## train, evaluate and compare all systems of params.yaml, then show the table
	$(BIN)/dvc repro
	@$(BIN)/python -m stages.report --out data/report   # the page is not in DVC's cache, so it may be of another run
	@$(BIN)/python -m segcore.commands.show --report data/report

test: $(READY)            ## every test, on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: $(READY)           ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

bench: $(READY)           ## the figures of docs/performance.md
	$(BIN)/python -m benchmarks

report: $(READY)          ## the page, from what is there
	$(BIN)/python -m stages.report --out data/report

use: $(READY)             ## make use PROFILE=voc-mini: put a profile in place of params.yaml
	@test -f "profiles/$(PROFILE).yaml" || { echo "no profile '$(PROFILE)'; there are: $(basename $(notdir $(wildcard profiles/*.yaml)))"; exit 2; }
	cp "profiles/$(PROFILE).yaml" params.yaml

voc: $(READY)             ## download VOC 2012 and SBD into data/VOCdevkit
	$(BIN)/python -m segcore.commands.fetch_voc --root data

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(READY): requirements.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	@touch $(READY)
