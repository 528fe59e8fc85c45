# make demo      pretrain a small GPT, teach it ten tasks by three methods, print a table, draw what was forgotten
# make test      all tests
# make results   the demo on several seeds, with intervals: results/demo.json and the README's table
SEED ?= 0
SEEDS ?= 0 1 2 3 4 5
OUT ?= out/demo
ARGS ?=
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: demo test results

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
	$(PY) train.py --method sdft --self-replay --seed $(SEED) --threads 1 --out $@ $(ARGS)

results: .venv/ready
	for s in $(SEEDS); do $(MAKE) --no-print-directory demo SEED=$$s OUT=out/demo-$$s || exit 1; done
	$(PY) eval.py --collect $(foreach s,$(SEEDS),out/demo-$(s)) --to results/demo.json
	$(PY) eval.py --readme

test: .venv/ready
	$(PY) -m pytest -q tests
