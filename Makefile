# Everything runs from .venv, which `make install` builds from requirements-dev.lock.
# Another interpreter: make PYTHON=/path/to/python3.12 install

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# PostgreSQL's messages and the SQL files are read as UTF-8 in every locale.
export PYTHONUTF8 := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test check lint lint-sql lint-python format freeze lock audit \
	db-start db-stop db-status db-reset doctor docs aio bench simulate soak clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(STAMP) ## make .venv from the lock (quick when nothing changed)

$(STAMP): pyproject.toml requirements-dev.lock
	@python=$$(PYTHON="$(PYTHON)" .ci/find-python) \
		&& echo "Installing into $(VENV) with $$python" \
		&& { $(BIN)/python -c '' 2>/dev/null || "$$python" -m venv --clear $(VENV); }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-compile --require-hashes --only-binary :all: -r requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-build-isolation --no-deps --editable .
	@touch $@

.env.local:
	@install -m 600 .env.local.example .env.local && echo "Wrote .env.local from .env.local.example"

# Show a command, then run it.
show = @echo "\$$ $(1)" && $(BIN)/$(1)

demo: install .env.local ## from nothing to a quota report on a real database
	$(call show,pyapp db start)
	$(call show,pyapp db migrate)
	$(call show,pyapp db check)
	$(call show,python examples/demo.py)
	$(call show,python -m examples.stripe_demo)
	$(call show,pyapp import usage examples/ada/*.jsonl --at now --user ada@example.com)
	$(call show,pyapp quota --all)

# Another server than the wheel's: make test PG_BIN=/usr/lib/postgresql/15/bin
test: install ## run the tests (ARGS="-k name" to choose)
	@$(BIN)/pytest -q -n auto --dist loadfile \
		$(if $(PG_BIN),--postgresql-exec=$(PG_BIN)/pg_ctl) $(ARGS)

lint: install ## all checks except the tests
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

check: lint test ## exactly what CI runs: SQL and Python linters, types, tests

format: install ## rewrite the Python files in the project's format
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix --quiet .

freeze: install ## list new migrations as final in migrations/SHA256SUMS
	@$(BIN)/python .ci/migration_sums.py --add

COMPILE = $(VENV)/lock/bin/uv pip compile --quiet --upgrade --universal \
	--python-version 3.11 --generate-hashes --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links
lock: install ## choose new versions for the locks
	@python=$$(PYTHON="$(PYTHON)" .ci/find-python) && "$$python" -m venv $(VENV)/lock
	@$(VENV)/lock/bin/python -m pip install --quiet --upgrade uv
	@$(COMPILE) --all-extras --group dev \
		--output-file requirements-dev.lock pyproject.toml
	@$(COMPILE) --no-deps --group servers --output-file requirements-servers.lock

audit: install ## look the locked packages up among the known weaknesses
	@$(BIN)/python -m venv $(VENV)/audit
	@$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	@$(VENV)/audit/bin/python .ci/audit.py

db-start: install .env.local ## serve DATABASE_URL: Docker if it answers, else embedded
	@$(BIN)/pyapp db start

db-stop: install ## stop the local server; the data stays
	@$(BIN)/pyapp db stop

db-status: install ## say whether the server is up, and its migrations
	@$(BIN)/pyapp db status

db-reset: install ## drop the local database and create it empty; asks first
	@$(BIN)/pyapp db reset

doctor: install ## check every link from the files to the schema
	@$(BIN)/pyapp doctor

docs: install ## write docs/schema.md
	@$(BIN)/pyapp db docs

aio: install ## generate pyapp/aio from the sync modules
	@$(BIN)/python .ci/generate_aio.py

SIZE := 100000
bench: install ## measure what is promised (SIZE=10000000 for the real one)
	@$(BIN)/python -m bench --size $(SIZE)

SEEDS := 50
FIRST := 1
simulate: install ## put Stripe's mirror through random lives (SEEDS=50 FIRST=1)
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS) --first $(FIRST)

SECONDS := 600
soak: install ## load while the server is killed each minute (SECONDS=600)
	@$(BIN)/python -m tests.soak --seconds $(SECONDS)

clean: ## remove .venv and caches; the local database stays
	@rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
