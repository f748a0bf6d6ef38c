# Everything here sets up what it needs by itself: system packages that are lacking (Debian, as root) and a virtual
# environment. The second time that takes no time.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory
export PATH := $(PATH):/usr/sbin:/sbin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
export PIP_USE_PEP517 := 1

PYTHON ?= python3
ifeq ($(PYTHON),python3)
VENV ?= .venv
else
VENV ?= .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
endif
BIN := $(VENV)/bin
ARGS ?=
KERNEL ?= 6.12

# For install: a virtual environment of its own in APPDIR, and a link to its command below PREFIX. Debian's interpreter
# unless PYTHON says otherwise, because one below /root is out of a service's reach.
PREFIX ?= /usr/local
APPDIR ?= /opt/promoterd
DESTDIR ?=
CONFDIR ?= /etc/promoterd
UNITDIR ?= /etc/systemd/system
SYSUSERSDIR ?= /etc/sysusers.d
ifeq ($(origin PYTHON),file)
SERVICE_PYTHON := $(firstword $(wildcard /usr/bin/python3) $(PYTHON))
else
SERVICE_PYTHON := $(PYTHON)
endif
LIVE := [[ -z '$(DESTDIR)' && -d /run/systemd/system ]]

.PHONY: help
help:
	@sed -n 's/^## //p' $(firstword $(MAKEFILE_LIST))

## make demo        show what promoterd does, on this machine, in under two minutes (root)
.PHONY: demo
demo: $(VENV)/.demo
	$(BIN)/promoterd demo $(ARGS)

## make test        all tests, on real overlays (root, FUSE); ARGS="tests/policy -x" for some of them; JOBS=0 for --pdb
.PHONY: test
JOBS ?= 4
test: $(VENV)/.dev packages-test
	@$(COMPILED)
	$(BIN)/python -m pytest $(if $(filter-out 0,$(JOBS)),$(BESIDE)) $(ARGS)

# The tests start the daemon and its commands some thousand times: none has to compile what it imports, also where
# PYTHONDONTWRITEBYTECODE is set.
COMPILED = $(BIN)/python -m compileall -q promoterd tests

# Side by side, a file of tests at a time, each process in namespaces of its own: some tests look at every mount namespace.
BESIDE = --dist loadfile --no-loadscope-reorder --tx '$(JOBS)*popen//python=tools/apart $(BIN)/python'

## make unit        the tests that need neither root nor FUSE nor an overlay
.PHONY: unit
unit: $(VENV)/.dev
	@$(COMPILED)
	$(BIN)/python -m pytest -m 'not system' $(ARGS)

## make stress      what takes too long for every day: 10^7 operations of readers, 10^6 entries, a kill at every point
.PHONY: stress
stress: $(VENV)/.dev packages-test
	PROMOTERD_STRESS=1 $(BIN)/python -m pytest -rP -m stress $(ARGS)
	PROMOTERD_STRESS=1 $(BIN)/python -m pytest tests/backends/test_layer_crashes.py

## make lint        ruff: rules and format
.PHONY: lint
lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

## make types       mypy, strict
.PHONY: types
types: $(VENV)/.dev
	$(BIN)/mypy

## make docs        bring the tables of keys in docs/policy.md up to date
.PHONY: docs
docs: $(VENV)/.dev
	$(BIN)/python -m promoterd.policy.reference docs/policy.md

## make docs-check  are they, do links resolve, and do the commands and policies in the documents work?
.PHONY: docs-check
docs-check: $(VENV)/.dev
	$(BIN)/python -m pytest -q tests/test_docs.py tests/policy/test_policy_documents.py $(ARGS)

## make bench       promotion against chown -hR, and the idle daemon (root; several minutes)
.PHONY: bench
bench: $(VENV)/.demo packages-test
	$(BIN)/python -m benchmarks.promotion $(ARGS)
	$(BIN)/python -m benchmarks.idle

## make lab         the real daemon on real NFS, in a virtual machine: tests, and RPCs counted; KERNEL=6.1 for another
##                  kernel, ARGS=--short for a small share (eight minutes instead of an hour; no KVM needed)
.PHONY: lab
lab: $(VENV)/.dev packages-lab
	PYTHONPATH=tests $(BIN)/python -m lab --kernel $(KERNEL) $(ARGS)

## make install     into APPDIR (/opt/promoterd), with a link, a systemd unit and an example policy (root, or DESTDIR)
.PHONY: install
install: app := $(DESTDIR)$(APPDIR)
install:
	@tools/system-packages $(SERVICE_PYTHON) venv
	@if [[ -n "$$(ls -A '$(app)' 2>/dev/null)" && ! -e '$(app)/pyvenv.cfg' ]]; then \
	  echo '$(app) holds something else: say APPDIR=...' >&2; exit 1; fi
	umask 022; $(SERVICE_PYTHON) -m venv '$(app)'
	umask 022; '$(app)/bin/python' -m pip install --quiet .
	@# what was written below DESTDIR will run without it
	@if [[ -n '$(DESTDIR)' ]]; then \
	  grep -rlIF '$(DESTDIR)' '$(app)/bin' '$(app)/pyvenv.cfg' | xargs -r sed -i 's|$(DESTDIR)||g'; fi
	install -d -m 755 '$(DESTDIR)$(CONFDIR)' '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(UNITDIR)' '$(DESTDIR)$(SYSUSERSDIR)'
	install -m 644 config/policy.example.yaml '$(DESTDIR)$(CONFDIR)/'
	ln -sfn '$(APPDIR)/bin/promoterd' '$(DESTDIR)$(PREFIX)/bin/promoterd'
	sed 's|/opt/promoterd|$(APPDIR)|g; s|/etc/promoterd|$(CONFDIR)|g' systemd/promoterd.service \
	  > '$(DESTDIR)$(UNITDIR)/promoterd.service'
	install -m 644 systemd/promoterd.sysusers.conf '$(DESTDIR)$(SYSUSERSDIR)/promoterd.conf'
	@if $(LIVE); then systemd-sysusers promoterd.conf; systemctl daemon-reload; fi
	@echo 'Next: write $(CONFDIR)/policy.yaml ($(CONFDIR)/policy.example.yaml is one), then systemctl enable --now promoterd'

## make uninstall   remove what install put there; policy and ledger stay, and so do marks: `promoterd retire` first
.PHONY: uninstall
uninstall: app := $(DESTDIR)$(APPDIR)
uninstall:
	@if $(LIVE); then systemctl disable --now promoterd.service || true; fi
	@if [[ -e '$(app)' && ! -e '$(app)/bin/promoterd' ]]; then echo '$(app) holds something else' >&2; exit 1; fi
	rm -rf '$(app)'
	rm -f '$(DESTDIR)$(PREFIX)/bin/promoterd' '$(DESTDIR)$(UNITDIR)/promoterd.service' \
	  '$(DESTDIR)$(SYSUSERSDIR)/promoterd.conf' '$(DESTDIR)$(CONFDIR)/policy.example.yaml'
	@if $(LIVE); then systemctl daemon-reload; fi

## make clean       remove virtual environments and caches
.PHONY: clean
clean:
	rm -rf .venv .venv-* .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
##
## PYTHON=python3.x chooses the interpreter (3.11 to 3.13); each other one gets an environment of its own, .venv-3.x

# A virtual environment with the extras that the stamp is named for.
$(VENV)/.%: pyproject.toml | packages-build
	$(BIN)/python -c pass 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[$*]'
	@touch $@

.PHONY: packages-build packages-test packages-lab
packages-build packages-test packages-lab: packages-%:
	@tools/system-packages $(PYTHON) $*
