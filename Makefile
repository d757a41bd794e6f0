# Everything a checkout needs, with Python 3.11 or newer (venv and pip), make and /bin/sh; `make` alone lists it.
# Recipes keep to POSIX sh and to what every Linux has: a machine for the demo has nothing else.

VENV := .venv
PY := $(VENV)/bin/python
# An installation of somebody else's Python must not leak into ours.
unexport PYTHONPATH PYTHONHOME

PIP := $(PY) -m pip --disable-pip-version-check --no-input -q
# These have no wheel: etcd3, and of what patroni (the tests' patronictl) needs python-etcd and ydiff. They are built by
# the setuptools of requirements-build.txt: for a build environment of its own pip would fetch whichever is the newest,
# unchecked.
PIP_INSTALL := $(PIP) install --require-hashes --no-build-isolation --only-binary :all: \
    --no-binary etcd3,python-etcd,ydiff
# A test that takes this long hangs: every thread's stack is printed, and the test goes on.
PYTEST := $(PY) -m pytest -o faulthandler_timeout=300
# Most of a test with servers is waiting, so files of tests run beside each other, one a core; ARGS='-n 0' for one by one.
SPREAD := -n auto --dist loadfile
ARGS ?=

MADE_FOR := $(VENV)/made-for
FOR_DEMO := $(VENV)/installed-for-demo
FOR_TESTS := $(VENV)/installed-for-tests

.PHONY: help demo test check lint compose-test bench chaos durability sim sim-search sim-mutants golden requirements clean moved

help: ## list these targets
	@echo "make demo takes TOUR=1, KEEP=directory, POSTGRES=16 and POSTGRES_BIN=directory;"
	@echo "make test and make check take ARGS='-k word' for pytest; all take PYTHON=/path/to/python3."
	@echo
	@sed -n '/^[a-z-]*:.*## /{ s/:.*## /              /; s/^\(.\{14\}\) */  make \1/; p; }' Makefile

demo: $(FOR_DEMO) ## three nodes and an etcd on this machine, live; TOUR=1 tells a failover without a terminal
	@exec $(VENV)/bin/matriarch demo $(if $(filter-out 0,$(TOUR)),--tour) $(if $(KEEP),--keep "$(KEEP)") \
	    $(if $(POSTGRES),--postgres "$(POSTGRES)")

test: lint ## everything: lint, types, and all tests, those with real servers too
	@echo "test         all tests"
	@$(PYTEST) $(SPREAD) $(ARGS)

check: lint ## lint, types and the fast tests: no servers, a minute or two
	@echo "test         the fast tests"
	@$(PYTEST) $(SPREAD) -m "not servers" $(ARGS)

lint: $(FOR_TESTS) ## formatting, ruff's rules and mypy, strict
	@echo "lint         ruff format, ruff check, mypy"
	@$(PY) -m ruff format --check --quiet .
	@$(PY) -m ruff check --quiet .
	@$(PY) -m mypy

compose-test: $(FOR_TESTS) ## build the images and run compose.yaml, as root, in a Docker daemon of its own
	@echo "compose      build the images, run compose.yaml"
	@$(PYTEST) tests/compose $(ARGS)

bench: $(FOR_TESTS) ## measure, and compare with the budgets
	@$(PY) -m tests.bench $(ARGS)

chaos: $(FOR_TESTS) ## break things on real processes, as root: every kind once; ALL=1 the whole matrix, for hours
	@$(PY) -m tests.chaos $(if $(filter-out 0,$(ALL)),--all) $(ARGS)

durability: $(FOR_TESTS) ## kill the primary's node ROUNDS=20 times in each synchronous mode; no acknowledged row may be lost
	@ROUNDS=$(if $(ROUNDS),$(ROUNDS),20) $(PYTEST) tests/cluster/test_durability.py $(ARGS)

sim: $(FOR_TESTS) ## simulate clusters under drawn faults: SEEDS=100 of them, or SEED=n told in full
	@$(PY) -m tests.simulation $(if $(SEEDS),--seeds $(SEEDS)) $(if $(SEED),--seed $(SEED)) $(ARGS)

sim-search: $(FOR_TESTS) ## every order of messages and failures of the sync set and an election, to DEPTH=14; WITHOUT=safeguard
	@$(PY) -m tests.search $(if $(DEPTH),--depth $(DEPTH)) $(if $(WITHOUT),--without $(WITHOUT)) $(ARGS)

sim-mutants: $(FOR_TESTS) ## remove each safeguard alone, find a seed that notices; writes docs/mutants.md; SEEDS=60 at most
	@$(PY) -m tests.simulation.mutants $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

golden: $(FOR_TESTS) ## rewrite the golden files and generated pages; commit what you can explain
	@$(PY) -m tests.golden_update
	@GOLDEN=write $(PYTEST) -q $$(grep -rl 'environ.*"GOLDEN"' --include='test_*.py' tests)

# pip-tools resolves for the Python that it runs under: the oldest supported one needs the most packages. Without
# UPGRADE=1 pins stay as they are unless pyproject.toml rules them out.
PIP_COMPILE = build/pip-tools/bin/python -m piptools compile --quiet --generate-hashes --allow-unsafe --strip-extras \
    --no-header --no-emit-options --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
    $(if $(UPGRADE),--upgrade)

requirements: $(MADE_FOR) ## compute the pinned, hashed requirements from pyproject.toml anew; UPGRADE=1
	@$(PY) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "make requirements needs Python 3.11")'
	@echo "pin          requirements-build.txt, requirements.txt, requirements-agent.txt, requirements-dev.txt"
	@$(PY) -m venv build/pip-tools
	@build/pip-tools/bin/python -m pip --disable-pip-version-check --no-input -q install pip-tools==7.6.2
	@printf 'pip\nsetuptools>=77\n' | $(PIP_COMPILE) --no-annotate -o requirements-build.txt -
	@$(PIP_COMPILE) --extra embedded -o requirements.txt pyproject.toml
	@$(PIP_COMPILE) -c requirements.txt -o requirements-agent.txt pyproject.toml
	@$(PIP_COMPILE) --extra embedded --extra test -c requirements.txt -o requirements-dev.txt pyproject.toml
	@! grep -nE '^-|://' requirements*.txt || { echo "a pin names where it came from" >&2; exit 1; }

clean: ## remove the environment, caches and what was built; the data of a kept demo stays
	@rm -rf $(VENV) build dist pgmatriarch.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment is made once; what is in it follows the files that it was made from. It knows the absolute path of the
# checkout and one version of Python, so it is made anew when either has changed.

PYTHON_FOUND := for python in "$(PYTHON)" python3 python3.13 python3.12 python3.11; do \
    [ -n "$$python" ] && "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
    python=; done
PRINT_VERSION := -c 'import sys; print(sys.version_info[:2])'

$(MADE_FOR):
	@$(PYTHON_FOUND); \
	if [ -z "$$python" ]; then \
	    echo "Python 3.11 or newer is needed: install python3 and python3-venv, or name it: PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	elif ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "$$python cannot make environments: install python3-venv (Debian, Ubuntu) and try again" >&2; \
	    exit 1; \
	fi; \
	echo "environment  $(VENV), with $$("$$python" -V)"; \
	"$$python" -m venv --clear $(VENV)
	@echo "$(CURDIR) $$($(PY) $(PRINT_VERSION))" > $@

$(FOR_DEMO): $(MADE_FOR) requirements-build.txt requirements.txt pyproject.toml
	@echo "install      what the agent and the demo need; the first time it downloads about 200 MB"
	@$(PIP) install --require-hashes -r requirements-build.txt
	@$(PIP_INSTALL) -r requirements.txt
	@PYTHONWARNINGS=ignore $(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(FOR_TESTS): $(FOR_DEMO) requirements-dev.txt
	@echo "install      what the checks and tests need"
	@$(PIP_INSTALL) -r requirements-dev.txt
	@touch $@

ifneq ($(CURDIR) $(shell $(PY) $(PRINT_VERSION) 2>/dev/null),$(shell cat $(MADE_FOR) 2>/dev/null))
$(MADE_FOR): moved
endif
