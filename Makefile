# Every target works from a fresh clone with Python 3.11, git, make and a C compiler.
#
#   make demo    compare memories on small tasks; the report goes to runs/demo
#   make test    the suite, in minutes
#   make slow    the tests that the suite leaves out
#   make check   what CI runs: both in one go, but for the longest
#   make lint    ruff and pyright
#   make wheel   build the wheel and import it in an environment of its own
#   make bench   print the benchmark tables
#   make lerobot the LeRobot plug-in's tests, in an environment of their own, and LeRobot
#                reads our demonstrations
#   make vla     the tests of pretrained image encoders and vision-language models, likewise
#   make clean   remove what the other targets made

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLING := $(VENV)/.installing

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PIP_USER := 0
# A sourced ROS set-up would put its own packages and pytest plugins before the pinned ones.
unexport PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help install demo test slow check lint wheel bench lerobot vla clean

help:
	@sed -n 's/^#   //p' Makefile

install: $(INSTALLED)

# The first mark is left behind by an interrupted install, which may have written half a package:
# the next call then begins with an empty environment. The second is newer than what it was made of.
# pip says nothing here but what made it fail. It compiles what it installs: where Python may not write,
# every process of a test would compile anew.
$(INSTALLED): pyproject.toml constraints.txt setup.py $(wildcard kernels/source/*)
	@command -v $(PYTHON) >/dev/null || { \
		echo "$(PYTHON) is not on the PATH; name another with make PYTHON=..." >&2; exit 1; }
	@if [ -e $(INSTALLING) ]; then rm -rf $(VENV); fi
	@echo "Installing engram and its tools into $(VENV); the first time takes some minutes."
	@$(PYTHON) -m venv $(VENV)
	@touch $(INSTALLING)
	@$(BIN)/python -m pip install -qq --editable ".[demonstrations,dev,manipulation,map,mujoco,ray,rllib,sb3,warp]" --constraint constraints.txt
	@mv $(INSTALLING) $(INSTALLED)
	@touch $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/engram compare preset=demo out=runs/demo resume=true

test: $(INSTALLED)
	$(BIN)/python -m pytest -n logical --maxprocesses 8

# Clusters of Ray follow one another (the group "ray"): each counts on the cores it finds.
# pytest exits with 5 when it finds no test, which here is no failure.
slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow -n logical --maxprocesses 8 --dist loadgroup --durations=15 || [ $$? -eq 5 ]

# While a test waits for its processes another runs: the clusters of Ray follow one another anyway.
# Five whole runs over Ray, killed and resumed, are left to `make slow`: a third of the time.
check: $(INSTALLED)
	$(BIN)/python -m pytest -m "not long" -n logical --maxprocesses 8 --dist loadgroup --durations=15

# Each tool runs whatever the one before it found.
lint: $(INSTALLED)
	@status=0; for check in "ruff check" "ruff format --check" pyright; do \
		echo "$(BIN)/$$check"; $(BIN)/$$check || status=1; \
	done; exit $$status

wheel: $(INSTALLED)
	$(BIN)/python .ci/check_wheel.py

bench: $(INSTALLED)
	$(BIN)/python tests/benchmarks/run.py

LEROBOT := .venv.lerobot
PLUGIN := plugins/lerobot_policy_engram

# LeRobot's pins and engram's exclude each other: an environment of its own, made when asked for.
$(LEROBOT)/.installed: $(PLUGIN)/requirements.txt $(PLUGIN)/pyproject.toml pyproject.toml
	@rm -rf $(LEROBOT)
	@$(PYTHON) -m venv $(LEROBOT)
	@$(LEROBOT)/bin/python -m pip install -qq --requirement $(PLUGIN)/requirements.txt
	@$(LEROBOT)/bin/python -m pip install -qq --no-deps lerobot==0.4.4 \
		--editable . --editable $(PLUGIN)
	@touch $@

lerobot: $(LEROBOT)/.installed $(INSTALLED)
	cd $(PLUGIN) && OMP_NUM_THREADS=1 ../../$(LEROBOT)/bin/python -m pytest -n logical --maxprocesses 4
	ENGRAM_LEROBOT=$(CURDIR)/$(LEROBOT)/bin/python $(BIN)/python -m pytest -m "" tests/agents/demonstrations/test_lerobot.py

PRETRAINED := .venv.vla

# Without these packages the suite shows what is said where they are missing.
$(PRETRAINED)/.installed: pyproject.toml constraints.txt
	@rm -rf $(PRETRAINED)
	@$(PYTHON) -m venv $(PRETRAINED)
	@$(PRETRAINED)/bin/python -m pip install -qq \
		--editable ".[demonstrations,dev,manipulation,vla]" --constraint constraints.txt
	@touch $@

vla: $(PRETRAINED)/.installed
	$(PRETRAINED)/bin/python -m pytest -m "" -n logical --maxprocesses 4 tests/policies/test_pretrained_*.py \
		tests/launch/test_clone_pretrained.py tests/configs/test_clone_configs.py

clean:
	rm -rf $(VENV) $(LEROBOT) $(PRETRAINED) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
