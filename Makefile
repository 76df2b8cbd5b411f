# make try       generate an unseen character with the weights that come with the package
# make page      the same in a browser: draw or drop pictures, see samples appear
# make demo      train on rendered characters and generate unseen ones
# make emoji     the same with emoji in colour, whose packages npm fetches (29 MB)
# make check     before each commit: lint, and the unit tests that start no process
# make test      what CI runs: the above, and programs as their users start them
# make test-all  everything: also pods of four, true sizes, endurance
# make weights   make the weights in the package again: the longer run (half an hour), then its export
#
# PYTHON=python3.12 make ... makes .venv with that Python: 3.11, 3.12 or 3.13.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/glyphs
DATA := datasets/glyphs
LONGER := runs/longer
EXAMPLE := fsdit/weights/glyphs/examples/greek-psi
EMOJI := datasets/emoji
EMOJI_PACKAGES := datasets/emoji-packages
EMOJI_SETS := noto@1.2.9 noto-v1@1.2.5 twemoji@1.2.5 openmoji@1.2.29 fluent-emoji@1.2.7 \
  fluent-emoji-flat@1.2.6 emojione@1.2.3 emojione-v1@1.2.3 fxemoji@1.2.2 streamline-emojis@1.2.4

# pip's own notices say nothing of this project: that it is old, or that root should not use it.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

# The large arrays of a train step then lie in huge pages, which is faster on a CPU
# (docs/results/cpu_speed.md). Other C libraries than glibc take no notice.
demo emoji weights: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: try page demo weights emoji check test test-all lint format clean same-python
.DEFAULT_GOAL := demo

# A .venv keeps the Python that made it, so one that is asked for by name has to be that one.
same-python:
	@test "$(origin PYTHON)" = file || test ! -e $(BIN)/python || \
	  test "$$($(PYTHON) -V)" = "$$($(BIN)/python -V)" || \
	  { echo "error: $(VENV) has $$($(BIN)/python -V): remove it to use $(PYTHON)" >&2; false; }

$(VENV)/installed: pyproject.toml constraints.txt | same-python
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and \
	  'error: fsdit needs Python 3.11 or later, not %d.%d: PYTHON=python3.12 make' % sys.version_info[:2])"
	@echo "Setting up $(VENV) (once; a few minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

# PyTorch, which the frozen networks are compared with, is large; the demo does without.
# torch-fidelity's functions on features need no torchvision, which is for CUDA builds only.
$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps torch-fidelity
	@touch $@

try: $(VENV)/installed
	@mkdir -p runs
	$(BIN)/python -m fsdit.sample --model=glyphs --supports=$(EXAMPLE) --output=runs/try.png
	@echo "Left in runs/try.png: supports of a character that training never saw; right: samples."

$(VENV)/installed-app: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[app]'
	@touch $@

page: $(VENV)/installed-app
	$(BIN)/python -m fsdit.app

$(DATA)/dataset.json: | $(VENV)/installed
	@echo "[1/3] Rendering the characters (seconds)"
	$(BIN)/python -m data_prep.glyphs --output_dir=$(DATA)

demo: $(VENV)/installed $(DATA)/dataset.json
	@echo "[2/3] Training (about 4 minutes on two CPU cores; start again to resume)"
	$(BIN)/python -m fsdit.main --config=experiments/glyphs.py --workdir=$(RUN)
	@echo "[3/3] Generating characters that it has never seen (about a minute)"
	$(BIN)/python -m fsdit.evaluate --workdir=$(RUN) --split=test --output=$(RUN)/test
	@echo "samples during training: $(RUN)/samples"
	@echo "TensorBoard: $(BIN)/tensorboard --logdir=$(RUN)/tensorboard"

weights: $(VENV)/installed $(DATA)/dataset.json
	@echo "[1/3] Training (about 25 minutes on two CPU cores; start again to resume)"
	$(BIN)/python -m fsdit.main --config=experiments/glyphs.py --workdir=$(LONGER) \
	  --config.data.class_augmentation=0.5 --config.sampling.guidance_scale=1.5 \
	  --config.train.num_steps=8000 --config.train.ema_decay=0.999 \
	  --config.optimizer.warmup_steps=100 \
	  --config.train.log_interval=200 --config.train.eval_interval=1000 \
	  --config.checkpoint.interval=1000
	@echo "[2/3] Evaluating (minutes)"
	$(BIN)/python -m fsdit.evaluate --workdir=$(LONGER) --split=test --output=$(LONGER)/test \
	  --config.evaluation.shots=5,1
	@echo "[3/3] Exporting into the package"
	$(BIN)/python -m experiments.shipping.weights --workdir=$(LONGER)

$(VENV)/installed-emoji: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[emoji]'
	@touch $@

# npm packs into a folder of another name, so that a stop leaves no half of the packages.
$(EMOJI_PACKAGES):
	@command -v npm >/dev/null || \
	  { echo "error: make emoji needs npm, which comes with Node.js" >&2; false; }
	@echo "[1/4] Fetching the emoji (29 MB; licences: docs/emoji.md)"
	rm -rf $@.partial && mkdir -p $@.partial
	cd $@.partial && npm pack --silent $(addprefix @iconify-json/,$(EMOJI_SETS))
	mv $@.partial $@

$(EMOJI)/dataset.json: | $(VENV)/installed-emoji $(EMOJI_PACKAGES)
	@echo "[2/4] Rendering the emoji (about a minute)"
	$(BIN)/python -m data_prep.emoji --packages=$(EMOJI_PACKAGES) --output_dir=$(EMOJI)

emoji: $(VENV)/installed-emoji $(EMOJI)/dataset.json
	@echo "[3/4] Training (under an hour on two CPU cores; start again to resume)"
	$(BIN)/python -m fsdit.main --config=experiments/emoji.py --workdir=runs/emoji
	@echo "[4/4] Generating emoji that it has never seen (minutes)"
	$(BIN)/python -m fsdit.evaluate --workdir=runs/emoji --split=test --output=runs/emoji/test
	@echo "TensorBoard: $(BIN)/tensorboard --logdir=runs/emoji/tensorboard"

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# One worker a core. Tests of one file share what it makes, so a file is one worker's.
PYTEST := $(BIN)/python -m pytest --jaxtyping-packages=fsdit,beartype.beartype --durations=15 \
  --numprocesses=2 --dist=loadfile --no-loadscope-reorder

check: lint
	$(PYTEST) -m 'not medium and not large'

test: lint
	$(PYTEST) -m 'not large'

test-all: lint
	$(PYTEST) --hypothesis-profile=thorough

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs datasets .cache .pytest_cache .ruff_cache *.egg-info
