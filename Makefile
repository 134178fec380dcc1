# make train: set everything up and train the default task.
# make test: lint, types, layering, and the tests; of the methods' tests those of a tenth of them, by the date, and of the changed ones.
# make test-all [SHARD=I/N]: every test, or part I of N.
# make examples: every file of examples/, each of which asserts what it shows; three minutes on one core.
# make bench: every benchmark beside its peers, which get environments of their own; hours on two cores.
# make bench-quick BASE=COMMIT: speed of the working tree beside the commit's; a quarter of an hour.
# make digests BASE=COMMIT: whether the working tree computes the same numbers as the commit; three minutes on one core.
# make fuzz N=5000: short runs with random flags; each has to end well, or in one sentence.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
FLAGS ?=
BASE ?= HEAD
N ?= 5000

.PHONY: train ci test test-all lint examples bench bench-quick digests fuzz clean

train: .venv/anypo
	$(BIN)/anypo train grpo $(FLAGS)

ci: test examples

test: export ANYPO_TEST_DATE ?= $(shell date +%F)
test: lint
	$(BIN)/pytest -n 2 --sample
	$(call verify,--sample)

test-all: lint
	$(BIN)/pytest -n 2 $(if $(SHARD),--shard $(SHARD))
	$(call verify,$(if $(SHARD),--shard $(SHARD)))

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/pyright
	$(BIN)/lint-imports

examples: .venv/dev
	for file in examples/*.py; do echo "$$file" && OMP_NUM_THREADS=1 $(BIN)/python "$$file" || exit 1; done

verify = names=$$($(BIN)/python tests/selection.py $(1)) && { test -z "$$names" || $(BIN)/anypo verify $$names --quick --jobs 2; }

bench: .venv/dev .venv-peers/done .venv-d3rlpy/done
	$(BIN)/python benchmarks/ppo_cartpole.py --peer .venv-peers/bin/python --save
	$(BIN)/python benchmarks/many_environments.py --save
	$(BIN)/python benchmarks/sac.py --peer .venv-peers/bin/python --save
	$(BIN)/python benchmarks/offline.py --peer .venv-d3rlpy/bin/python --save
	$(BIN)/python benchmarks/head_memory.py --json benchmarks/results/head_memory.json
	$(BIN)/python benchmarks/text_grpo.py --peer .venv-peers/bin/python --json benchmarks/results/text_grpo.json
	$(BIN)/python benchmarks/text_accuracy.py --peer .venv-peers/bin/python --json benchmarks/results/text_accuracy.json

bench-quick: .venv/dev
	$(BIN)/python benchmarks/quick.py --base $(BASE) $(FLAGS)

digests: .venv/dev
	$(BIN)/python tools/digests.py --base $(BASE) $(FLAGS)

fuzz: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python tools/fuzz.py --cases $(N)

# what is installed for the tests is seen there too: torch above all
.venv-%/done: benchmarks/requirements-%.txt .venv/dev
	$(BIN)/python -m venv .venv-$*
	site='import site; print(site.getsitepackages()[0])'; \
	$(BIN)/python -c "$$site" > "$$(.venv-$*/bin/python -c "$$site")/main.pth"
	.venv-$*/bin/pip install --quiet --disable-pip-version-check --no-deps -r $<
	touch $@

.venv/pip: constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) torch
	touch $@

.venv/anypo: .venv/pip pyproject.toml
	$(INSTALL) -e ".[text]"
	touch $@

.venv/dev: .venv/pip pyproject.toml
	$(INSTALL) -e ".[dev]"
	touch .venv/anypo $@

clean:
	rm -rf .venv .venv-peers .venv-d3rlpy
