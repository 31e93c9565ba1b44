# In the order of the flow; `make` alone prints the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
VENV ?= .venv
# Not the scripts in bin: their first line cannot name a Python in a folder with a space.
RUN = "$(VENV)/bin/python" -m
MARSMITH = $(RUN) marsmith

MODEL ?= efficientnet_lite0
# For pytest: make test OPTIONS='-k deploy -x'
OPTIONS ?=

.PHONY: help heavy test test-tools test-long test-fast test-lowest coverage check fix pages docs lock bench clean distclean

# The stamp is newer than what it was made from, so a second call does nothing. It is only written when all holds.
$(VENV)/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "marsmith needs Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 1; }
	@echo "installing into $(VENV), about 5 GB with PyTorch; if it is interrupted, the next call goes on" >&2
	@tools/venv.sh sync "$(VENV)" requirements.txt $(PYTHON)
	@touch "$@"

setup: $(VENV)/.installed

include tools/flow.mk

# Three on two cores: while one test waits for a server, another one works. In the order of tests/durations.json.
PYTEST = pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test: setup  ## the tests, with a real TorchServe; further cases of them: test-long
	@$(RUN) $(PYTEST) -m 'not long' $(OPTIONS)

test-tools:  ## install the Debian packages of tests/debian.txt, which some tests run; needs root if one is missing
	@tools/debian.sh tests/debian.txt

# Every kill, signal, locale, form, size, ... of which `make test` runs a few.
PART ?=
test-long: setup  ## those that repeat a test in many ways (PART=kills|export|requests|servers|setup|monitor|batch|host)
	@$(RUN) $(PYTEST) -m $(if $(PART),"long(part='$(PART)')",long) $(OPTIONS)

# Unit tests of what needs no torch, no server and no build.
FAST = $(filter-out $(addprefix tests/unit/,export build scaffold __pycache__),$(wildcard tests/unit/*))
test-fast: setup  ## unit tests that need neither torch nor a server: about 90 s
	@$(RUN) pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --without-torch \
	  -m 'not live and not long and not tensors' $(FAST) $(OPTIONS)

coverage: setup  ## the lines of src that `make test` runs, processes that it starts included; takes longer than test
	@$(RUN) $(PYTEST) -m 'not long' --cov --cov-report term:skip-covered $(OPTIONS)

# The oldest versions that pyproject.toml claims to work with, and the newest Python that does: each in its own .venv.
NEWEST_PYTHON ?= python3.13
LOWEST := $(VENV)-lowest
NEWEST := $(VENV)-newest

$(LOWEST)/.installed: tests/lowest/requirements.txt pyproject.toml
	@tools/venv.sh sync "$(LOWEST)" tests/lowest/requirements.txt $(PYTHON)
	@touch "$@"

$(NEWEST)/.installed: requirements.txt pyproject.toml
	@tools/venv.sh sync "$(NEWEST)" requirements.txt $(NEWEST_PYTHON)
	@touch "$@"

test-lowest: $(LOWEST)/.installed $(NEWEST)/.installed  ## unit tests and one live test with the oldest packages, and with NEWEST_PYTHON
	@for venv in "$(LOWEST)" "$(NEWEST)"; do \
	  "$$venv/bin/python" -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder -m 'not live and not long' $(OPTIONS) \
	  && "$$venv/bin/python" -m pytest tests/live/test_flow_live.py || exit 1; \
	done

# Tools with many packages, which only long tests start: each in a .venv of its own.
$(VENV)-airflow/.installed $(VENV)-ray/.installed: $(VENV)-%/.installed: tests/heavy/%.txt $(VENV)/.installed
	@$(PYTHON) -m venv "$(VENV)-$*"
	@$(RUN) uv pip sync --quiet --no-build --compile-bytecode --require-hashes --python "$(VENV)-$*/bin/python" $<
	@touch "$@"

heavy: $(VENV)-airflow/.installed $(VENV)-ray/.installed  ## Airflow and Ray, for the tests of `make test-long PART=batch` that start them

# The peers come on top of .venv: the same torch, and nothing of requirements.txt changes.
$(VENV)/.bench-installed: benchmarks/requirements.txt $(VENV)/.installed
	@tools/venv.sh add "$(VENV)" benchmarks/requirements.txt
	@touch "$@"

bench: archive $(VENV)/.bench-installed  ## every benchmark, side by side, into docs/explanation/benchmarks.md (BENCH=--quick: shorter)
	@"$(VENV)/bin/python" benchmarks/run_all.py $(BENCH)

check: setup  ## types, lint, format, the direction of imports, code that stands twice
	@$(RUN) ruff check . && $(RUN) ruff format --check . && $(RUN) mypy
	@"$(VENV)/bin/python" -c 'from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))'
	@$(RUN) pylint --disable=all --enable=duplicate-code src/marsmith

fix: setup  ## fix what lint and format can fix, and render the schemas anew
	@$(RUN) ruff check --fix . ; $(RUN) ruff format .
	@"$(VENV)/bin/python" -c 'from marsmith.config.model_spec import model_spec_schema; print(model_spec_schema(), end="")' \
	  > config/model-spec.schema.json
	@"$(VENV)/bin/python" -c 'from marsmith.config.project_settings import settings_schema; print(settings_schema(), end="")' \
	  > config/marsmith.schema.json

pages: setup  ## write the parts of docs/ that are made from the code: command line, Python API, drawing, links
	@"$(VENV)/bin/python" tools/pages

# Its dependencies are its own: nothing of .venv is needed to build the site.
$(VENV)-docs/.installed: docs/requirements.txt
	@$(PYTHON) -m venv "$(VENV)-docs"
	@"$(VENV)-docs/bin/python" -m pip install --quiet --no-deps --require-hashes --requirement docs/requirements.txt
	@touch "$@"

docs: $(VENV)-docs/.installed  ## the pages as a site with search, in build/site
	@"$(VENV)-docs/bin/zensical" build --strict --clean
	@echo "build/site/index.html"

lock: setup  ## write requirements.txt anew from pyproject.toml, and those of the benchmarks and of the site
	@$(RUN) uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --extra dev \
	  --no-emit-package marsmith --custom-compile-command 'make lock' --upgrade --output-file requirements.txt pyproject.toml
	@$(RUN) uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --constraint requirements.txt \
	  --custom-compile-command 'make lock' --upgrade --output-file benchmarks/requirements.txt benchmarks/requirements.in
	@$(RUN) uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --custom-compile-command 'make lock' --upgrade --output-file docs/requirements.txt docs/requirements.in
	@$(RUN) uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --extra dev --resolution lowest-direct \
	  --no-emit-package marsmith --custom-compile-command 'make lock' --output-file tests/lowest/requirements.txt pyproject.toml
	@for tool in airflow ray; do \
	  $(RUN) uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --constraint requirements.txt \
	  --custom-compile-command 'make lock' --upgrade --output-file tests/heavy/$$tool.txt tests/heavy/$$tool.in; done

# Neither needs .venv. What cannot be built again (TLS keys, journals, what was served) is distclean's matter alone.
clean:  ## stop the server and remove what can be built again
	@tools/clean.sh "$(VENV)"

distclean:  ## remove everything that git does not keep, TLS keys and .venv too, after asking (FORCE=1: without)
	@tools/clean.sh "$(VENV)" all
