# make test       all tests
# make test-fast  those that need no server, and one that does: under a minute
# make soak    backups, receivers, restores and repositories ended at 260 of their system calls, by SIGKILL and power cuts
# make fuzz    damaged answers, WAL and backups against the whole program, ten minutes: ARGS='--seconds 3600' for an hour
# make check   ruff, mypy --strict, import-linter
# make demo    the story in two minutes on a throw-away PostgreSQL 18
# make bench   side by side with pg_basebackup, pg_receivewal, pg_waldump, pg_verifybackup (and polar_basebackup with POLARDB_BIN set)
# make docs    reference, manual pages and completions from the program itself
# Each does its own set-up: a virtual environment in .venv with what the target needs.
# ARGS is handed on: make test ARGS='-k tar', make bench BENCH=basebackup ARGS='--runs 3 --only plain-disk'.

.PHONY: help test test-fast soak fuzz demo check bench docs clean unusable
.DEFAULT_GOAL := help

VENV := .venv
# Most tests wait for a server now and then, so that one worker more than there are cores keeps a small machine busy.
WORKERS := $(shell echo $$(( $$(nproc 2>/dev/null || echo 2) + 1 )))
BENCH := basebackup receivewal wal_reading verifybackup
BIN := $(VENV)/bin
# Another one than tools/choose_python.sh finds: make PYTHON=/path/to/python3
PYTHON ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

help:
	@sed -n 's/^# make/make/p' Makefile

# An environment whose Python the servers' user cannot run any more (a home directory was closed, a Python was removed)
# is made anew. A umask of 077 would shut that user out of it as well.
ifneq ($(wildcard $(BIN)/python),)
UNUSABLE := $(shell tools/choose_python.sh --usable $(BIN)/python || echo unusable)
endif

$(BIN)/python: $(UNUSABLE)
	@python="$$(tools/choose_python.sh $(PYTHON))" && umask 022 && "$$python" -m venv --clear $(VENV)

unusable:
	@echo "making $(VENV) anew: its Python does not run, or not as the user that servers run as" >&2

# One stamp for each set of extras, so that a target installs no more than it needs, and only once.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	@echo "installing polarvault[$*] into $(VENV)" >&2
	@umask 022 && $(BIN)/python -m pip install -q --progress-bar off -e '.[$*]'
	@# pip compiles what it installs, but not an editable install: each start would compile all modules again where
	@# PYTHONDONTWRITEBYTECODE is set.
	@umask 022 && $(BIN)/python -m compileall -q src
	@touch $@

test: $(VENV)/.installed-test
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

# worksteal: these files take from nothing to half a minute each.
test-fast: $(VENV)/.installed-test
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow" $(ARGS)

soak: $(VENV)/.installed-test
	@cd tests && ../$(BIN)/python -m support.kill_campaigns $(ARGS)

fuzz: $(VENV)/.installed-test
	@cd tests && ../$(BIN)/python -m support.fuzz_campaigns $(ARGS)

demo: $(VENV)/.installed-demo
	@$(BIN)/python -m polarvault demo $(ARGS)

check: $(VENV)/.installed-dev,test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(VENV)/.installed-test
	@set -e; for name in $(BENCH); do $(BIN)/python bench/$$name.py $(ARGS); done

docs: $(VENV)/.installed-test
	@$(BIN)/python docs/make_reference.py
	@$(BIN)/python docs/make_man.py
	@echo "wrote docs/man and contrib/completion"

clean:
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
