# Everything runs from .venv, which `make install` builds from requirements-dev.lock.
# Another interpreter: make PYTHON=/path/to/python3.12 install

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Read PostgreSQL's messages and the SQL files as UTF-8 in every locale.
export PYTHONUTF8 := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test check lint lint-sql lint-python format freeze lock audit \
	db-start db-stop db-status db-reset doctor docs aio bench simulate soak clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(STAMP) ## create .venv from the lock (quick if up to date)

$(STAMP): pyproject.toml requirements-dev.lock
	@python=$$(PYTHON="$(PYTHON)" .ci/find-python) \
		&& echo "Installing into $(VENV) with $$python" \
		&& { $(BIN)/python -c '' 2>/dev/null || .ci/make-venv "$$python" $(VENV); }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-compile --require-hashes --only-binary :all: --no-deps \
		-r requirements-dev.lock
	@# An older .venv has the distribution under its former name.
	@$(BIN)/python -m pip uninstall --quiet --yes pyapp 2>/dev/null
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-build-isolation --no-deps --editable .
	@touch $@

.env.local:
	@install -m 600 .env.local.example .env.local && echo "Wrote .env.local from .env.local.example"

# Show a command, then run it.
show = @echo "\$$ $(1)" && $(BIN)/$(1)

demo: install .env.local ## start a database, fill it, and print quotas
	$(call show,pyapp db start)
	$(call show,pyapp db migrate)
	$(call show,pyapp db check)
	$(call show,python examples/demo.py)
	$(call show,python -m examples.stripe_demo)
	$(call show,pyapp import usage examples/ada/*.jsonl --at now --user ada@example.com)
	$(call show,pyapp quota --all)

# On another PostgreSQL: make test PG_BIN=/usr/lib/postgresql/15/bin
test: install ## run the tests (ARGS="-k name" to choose)
	@$(BIN)/pytest -q -n auto --dist loadfile \
		$(if $(PG_BIN),--postgresql-exec=$(PG_BIN)/pg_ctl) $(ARGS)

lint: install ## run all checks except the tests
	@$(MAKE) --no-print-directory -j 2 lint-sql lint-python

lint-sql:
	@$(BIN)/sqlfluff lint -q sql migrations bench
	@$(BIN)/python .ci/lint_migrations.py
	@$(BIN)/python .ci/migration_sums.py

lint-python:
	@$(BIN)/ruff format --check --quiet . || { echo "run: make format"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --strict
	@$(BIN)/python .ci/lint_docs.py
	@$(BIN)/python .ci/generate_aio.py --check

check: lint test ## run the linters, type checks and tests of CI

format: install ## format the Python files
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix --quiet .

freeze: install ## record new migrations in migrations/SHA256SUMS
	@$(BIN)/python .ci/migration_sums.py --add

COMPILE = $(BIN)/uv pip compile --quiet --upgrade --universal \
	--python-version 3.11 --generate-hashes --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links
lock: install ## update the lock files
	@$(COMPILE) --all-extras --group dev \
		--output-file requirements-dev.lock pyproject.toml
	@$(COMPILE) --no-deps --group servers --output-file requirements-servers.lock
	@$(COMPILE) --constraint requirements-dev.lock --extra cli --extra web \
		--output-file deploy/requirements.lock pyproject.toml
	@$(COMPILE) --constraint requirements-dev.lock --group build \
		--output-file deploy/requirements-build.lock

audit: install ## check locked packages for known vulnerabilities
	@$(BIN)/python -m venv $(VENV)/audit
	@$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	@$(VENV)/audit/bin/python .ci/audit.py

db-start: install .env.local ## start the local server
	@$(BIN)/pyapp db start

db-stop: install ## stop the local server; keep its data
	@$(BIN)/pyapp db stop

db-status: install ## show the state of the server and the migrations
	@$(BIN)/pyapp db status

db-reset: install ## recreate the local database; asks first
	@$(BIN)/pyapp db reset

doctor: install ## check the setup, from the files to the schema
	@$(BIN)/pyapp doctor

docs: install ## write docs/schema.md
	@$(BIN)/pyapp db docs

aio: install ## generate pyapp/aio from the sync modules
	@$(BIN)/python .ci/generate_aio.py

SIZE := 100000
bench: install ## measure performance (SIZE=10000000 for the full size)
	@$(BIN)/python -m bench --size $(SIZE)

SEEDS := 50
FIRST := 1
simulate: install ## run random histories of a Stripe account (SEEDS=50 FIRST=1)
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS) --first $(FIRST)

SECONDS := 600
soak: install ## run under load while the server is killed (SECONDS=600)
	@$(BIN)/python -m tests.soak --seconds $(SECONDS)

clean: ## remove .venv and caches; keep the local database
	@rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
