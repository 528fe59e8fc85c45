# make demo      pretrain a small GPT, write ten tasks as files, teach them by three methods, print a table, draw a picture
# make smollm2   fetch a real chat model, teach it invented facts by three methods, table, answers, picture
# make test      the form of the code, and all tests
# make gpu       where a GPU is: the tests marked gpu, the kernel, steps of five models, a short demo (eight minutes; with PYTHON)
# make evidence  every run behind the figures of lab/README.md, one a core (hours; QUICK=1: minutes), and the figures again
#
# Of make demo SEED draws the world; OUT is the folder of the runs; BASE, WORLD and ARGS are further options of lab/pretrain.py,
# lab/world.py and train.py. On a machine that has other work: make demo BASE="--threads 1"
SEED ?= 0
OUT ?= out/demo$(OF)
BASE ?=
WORLD ?=
ARGS ?=
PYTHON ?= python3
PY := .venv/bin/python
# a seed's base model and world stay where they are: its runs go on from them. Not all worlds have neighbours
OF := $(if $(filter-out 0,$(SEED)),-$(SEED))
FILES := --init out/base$(OF) --demos out/world$(OF)/tasks/*.jsonl --keep out/world$(OF)/keep.jsonl \
         --reading out/world$(OF)/reading.jsonl \
         $(addprefix --neighbours ,$(wildcard out/world$(OF)/neighbours.jsonl))

.PHONY: demo smollm2 test gpu evidence

.venv/ready: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# The base model first, with all cores; then the three methods side by side, a thread each.
demo: .venv/ready
	$(PY) lab/pretrain.py --seed $(SEED) --out out/base$(OF) $(BASE)
	$(PY) lab/world.py --seed $(SEED) --tasks 10 --out out/world$(OF) $(WORLD)
	$(MAKE) --no-print-directory -j2 $(OUT)/sdft+self-replay $(OUT)/sft $(OUT)/sdft
	$(PY) eval.py $(OUT)

# Two at a time print lines, and none that renews itself.
METHODS := $(OUT)/sft $(OUT)/sdft $(OUT)/sdft+self-replay
.PHONY: $(METHODS)
$(METHODS): export TERM = dumb
$(OUT)/sft:
	$(PY) train.py $(FILES) --method sft --seed $(SEED) --threads 1 --out $@ $(ARGS)
$(OUT)/sdft:
	$(PY) train.py $(FILES) --method sdft --seed $(SEED) --threads 1 --out $@ $(ARGS)
$(OUT)/sdft+self-replay:
	$(PY) train.py $(FILES) --penalty self-replay --seed $(SEED) --threads 1 --out $@ $(ARGS)

# One run with all cores after the other.
smollm2: .venv/ready
	$(PY) lab/smollm2.py

ifdef QUICK
evidence: .venv/ready
	$(PY) lab/evidence.py --quick
	for e in twenty market baselines variants; do $(PY) eval.py out/quick/$$e/0; done
else
evidence: .venv/ready
	$(PY) lab/evidence.py
	$(PY) lab/claims.py
endif

test: .venv/ready
	.venv/bin/ruff check .
	$(PY) -m pytest -q -n auto --dist loadfile tests

# The machine's own Python: a torch that fits its driver is there, and nothing need be installed.
gpu:
	$(PYTHON) tests/gpu.py
