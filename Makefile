# make demo: the main job on Moji, ends in a report.   make test: the tests.   make lint: style and types.
# make leaderboard: every eraser on Moji, two hours and more; those that claim it also on many at once and one after the other.
# If interrupted, run it again to continue.
# Each sets itself up: a virtual environment in .venv, installed once and again when pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test fast fuzz lint leaderboard attacks moji3 real-size mutants clean

demo: $(READY)
	$(BIN)/efface demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

fast: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

# Random arguments, files and damage through the command line: some minutes.
fuzz: $(READY)
	EFFACE_FUZZ=400 $(BIN)/python -m pytest tests/cli/test_fuzz.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "efface needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Say: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0 -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

METHODS := uce,uce-2023,uce-2025,time,rece,cpe,mace,mapping,esd-x,naive,ablation,ap,age,spm,receler,kpop,sld-max,negative
MANY := uce,uce-2023,uce-2025,time,rece,cpe,mace,mapping,esd-x

ATTACKS := baselines,unlearndiffatk,soft,soft-control,rece-rows,inverse,inversion,inversion-control,latent,latent-control,relearn,relearn-control
ATTACKED := uce,time,rece,cpe,mace,mapping,esd-x,ablation,spm,receler,kpop,sld-max

leaderboard: $(READY)
	$(BIN)/efface bench --methods $(METHODS) --concepts tiger,rose,noto,santa,alcohol,tiger+noto -o leaderboard --store leaderboard/store
	$(BIN)/efface bench --methods $(MANY) --concepts many-5,many-25,sequence -o leaderboard/many --store leaderboard/store
	$(BIN)/efface report leaderboard
	mkdir -p docs/leaderboard
	cp leaderboard/leaderboard.md docs/leaderboard/README.md
	cp leaderboard/leaderboard.csv docs/leaderboard/
	[ ! -f leaderboard/attacks.md ] || cp leaderboard/attacks.md leaderboard/attacks.svg docs/leaderboard/
	cp leaderboard/many/leaderboard.md docs/leaderboard/many.md
	cp leaderboard/many/leaderboard.csv docs/leaderboard/many.csv

# Attacks on twelve methods at the smallest budget: some 40 minutes of two cores for a concept. Several processes may run it at once.
# `make leaderboard` takes its columns of attacks from here, if it comes afterwards.
attacks: $(READY)
	$(BIN)/efface bench --methods $(ATTACKED) --concepts tiger,alcohol --attacks $(ATTACKS) --attack-size smoke \
	  -o leaderboard/attacked --store leaderboard/store

# make moji3: five erasers on Moji-3, half an hour.
moji3: $(READY)
	$(BIN)/efface bench --model moji3 --methods uce,uce:pooled=false,esd-x,cpe,spm,sld-max --concepts tiger,noto --size demo -o leaderboard/moji3
	mkdir -p docs/leaderboard
	cp leaderboard/moji3/leaderboard.md docs/leaderboard/moji3.md
	cp leaderboard/moji3/leaderboard.csv docs/leaderboard/moji3.csv

# Every method at the size of Stable Diffusion 1.4 and 2.1, random weights: over an hour, 20 GB of memory, 10 GB of disk.
real-size: $(READY)
	$(BIN)/python benchmarks/real_size.py

# Listed slips in formulas and released values, each of which must turn a test red: an hour.
mutants: $(READY)
	$(BIN)/python benchmarks/mutants.py

clean:
	rm -rf $(VENV) efface-demo evaluation .pytest_cache .ruff_cache
