# make demo      pretrain a small GPT, teach it ten tasks by three methods, print a table, draw what was forgotten
# make test      all tests
# make evidence  every run behind the README's figures, two at a time (hours; QUICK=1: minutes), and the figures again
SEED ?= 0
OUT ?= out/demo
ARGS ?=
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: demo test evidence

.venv/ready: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# The base model first, with all cores; then the three methods side by side, a thread each.
demo: .venv/ready
	$(PY) train.py --method base --seed $(SEED) --out out/base-$(SEED) $(ARGS)
	$(MAKE) --no-print-directory -j2 $(OUT)/sdft+self-replay $(OUT)/sft $(OUT)/sdft
	$(PY) eval.py $(OUT)

.PHONY: $(OUT)/sft $(OUT)/sdft $(OUT)/sdft+self-replay
$(OUT)/sft:
	$(PY) train.py --method sft --seed $(SEED) --threads 1 --out $@ $(ARGS)
$(OUT)/sdft:
	$(PY) train.py --method sdft --seed $(SEED) --threads 1 --out $@ $(ARGS)
$(OUT)/sdft+self-replay:
	$(PY) train.py --method sdft --penalty self-replay --seed $(SEED) --threads 1 --out $@ $(ARGS)

ifdef QUICK
evidence: .venv/ready
	$(PY) evidence.py --quick
	for e in twenty market baselines variants; do $(PY) eval.py out/quick/$$e/0; done
else
evidence: .venv/ready
	$(PY) evidence.py
	$(PY) claims.py
	$(PY) eval.py --readme
endif

test: .venv/ready
	$(PY) -m pytest -q tests
