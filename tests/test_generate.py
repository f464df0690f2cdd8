"""Migrations are drafted from the SQL files and proved before they are written.

On another version: pytest tests/test_generate.py --postgresql-host=... (see conftest).
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pyapp._core.queries import migrations_dir
from pyapp.devtools.checks.dumps import Objects
from pyapp.devtools.checks.schema_diff import load_schema, read_objects
from pyapp.devtools.checks.scratch_database import scratch_database
from pyapp.devtools.generate.command import generate
from pyapp.devtools.generate.migration_files import NewMigration
from pyapp.devtools.generate.proof import write_migrations
from pyapp.devtools.generate.sources import read_sources
from pyapp.devtools.generate.steps import Rename, read_side
from pyapp.devtools.generate.structure import StructureDrafter
from pyapp.devtools.migrations.migrator import migrate, rollback
from pyapp.errors import GenerateError
from tests import drafting
from tests.drafting import (
    NOTES,
    SCHEMA,
    Change,
    add,
    combine,
    read_pair,
    replace,
    write_sql,
)

# Fixtures; pytest finds them by their names in this module.
url, base, folder, schema = (
    drafting.url,
    drafting.base,
    drafting.folder,
    drafting.schema,
)


def add_column(definition: str) -> Change:
    """Add a last column to stripe_sync_runs."""
    last = "    last_error  text,\n"
    return replace(last, f"{last}    {definition},\n")


CHANGES: dict[str, tuple[Change, list[str]]] = {
    "new_table": (add(NOTES), [NOTES.strip()]),
    "new_column": (
        add_column("host text NOT NULL DEFAULT 'x'"),
        ["    ADD COLUMN host text NOT NULL DEFAULT 'x';"],
    ),
    "new_generated_column": (
        add_column("is_over boolean GENERATED ALWAYS AS (outcome <> 'running') STORED"),
        ["-- Rewrites app.stripe_sync_runs", "ADD COLUMN is_over boolean"],
    ),
    "changed_generated_expression": (
        replace("AS (base_quota + referral_credits)", "AS (base_quota)"),
        ["    ALTER COLUMN quota SET EXPRESSION AS (base_quota);"],
    ),
    "new_check": (
        add(
            "ALTER TABLE app.users ADD CONSTRAINT users_name_length_check"
            " CHECK (length(name) < 300);"
        ),
        [
            "CHECK (length(name) < 300) NOT VALID;",
            "VALIDATE CONSTRAINT users_name_length_check;",
        ],
    ),
    "new_partial_covering_index": (
        add(
            "-- For finance.\nCREATE INDEX messages_model_idx ON app.messages (model)"
            " INCLUDE (credits)\nWHERE model <> 'x';"
        ),
        [
            "-- transactional: false",
            "-- For finance.\nCREATE INDEX CONCURRENTLY messages_model_idx ON"
            " app.messages (model) INCLUDE (credits)\nWHERE model <> 'x';",
        ],
    ),
    "dropped_index": (
        replace("CREATE INDEX messages_user_id_idx ON app.messages (user_id);\n", ""),
        [
            "-- transactional: false",
            "DROP INDEX CONCURRENTLY app.messages_user_id_idx;",
        ],
    ),
    "new_check_value": (
        replace("IN ('pending', 'completed'))", "IN ('pending', 'completed', 'void'))"),
        ["DROP CONSTRAINT referrals_status_known_check;", "'void'", "NOT VALID"],
    ),
    "changed_function_body": (
        replace("-- Lock all users in id order", "-- Lock all users by id"),
        [
            "CREATE OR REPLACE FUNCTION app.grant_referral_credits()\nRETURNS trigger",
            "-- Lock all users by id",
        ],
    ),
    "changed_trigger": (
        replace(
            "messages_append_only BEFORE UPDATE OR DELETE OR TRUNCATE",
            "messages_append_only BEFORE UPDATE OR DELETE",
        ),
        ["DROP TRIGGER messages_append_only ON app.messages;", "UPDATE OR DELETE ON"],
    ),
    "new_comments": (
        add(
            "COMMENT ON INDEX app.sessions_expires_at_idx IS 'Ours.';\n"
            "COMMENT ON CONSTRAINT users_pkey ON app.users IS 'Theirs.';"
        ),
        [
            "sessions_expires_at_idx IS 'Ours.';",
            "users_pkey ON app.users IS 'Theirs.';",
        ],
    ),
    "changed_type": (
        replace("attempts         integer", "attempts         bigint"),
        [
            "-- May rewrite app.stripe_events under an ACCESS EXCLUSIVE lock.",
            "ALTER COLUMN attempts SET DATA TYPE bigint;",
        ],
    ),
    "changed_default_and_not_null": (
        replace(
            "is_dry_run  boolean NOT NULL DEFAULT FALSE",
            "is_dry_run  boolean DEFAULT TRUE",
        ),
        ["is_dry_run SET DEFAULT TRUE;", "is_dry_run DROP NOT NULL;"],
    ),
    "new_not_null": (
        replace("cursor      text,", "cursor      text NOT NULL,"),
        ["-- Reads all of app.stripe_sync_runs", "cursor SET NOT NULL;"],
    ),
    "new_foreign_key_and_index": (
        add(
            "ALTER TABLE app.stripe_events ADD COLUMN user_id uuid;\n"
            "ALTER TABLE app.stripe_events ADD CONSTRAINT stripe_events_user_id_fkey"
            " FOREIGN KEY (user_id) REFERENCES app.users (id) ON DELETE RESTRICT;\n"
            "CREATE INDEX stripe_events_user_id_idx ON app.stripe_events (user_id);"
        ),
        [
            "ADD COLUMN user_id uuid;",
            "NOT VALID;",
            "VALIDATE CONSTRAINT stripe_events_user_id_fkey;",
            "CREATE INDEX CONCURRENTLY stripe_events_user_id_idx",
        ],
    ),
    "new_unique_constraint": (
        add(
            "ALTER TABLE app.plans ADD CONSTRAINT plans_credits_key"
            " UNIQUE (monthly_credits, id);"
        ),
        [
            "CREATE UNIQUE INDEX CONCURRENTLY plans_credits_key"
            " ON app.plans (monthly_credits, id);",
            "ADD CONSTRAINT plans_credits_key UNIQUE USING INDEX plans_credits_key;",
        ],
    ),
    "new_type": (
        add("CREATE TYPE app.mood AS ENUM ('good', 'bad');"),
        ["CREATE TYPE app.mood AS ENUM", "DROP TYPE app.mood;"],
    ),
    "index_of_a_partitioned_table": (
        add(
            "CREATE INDEX message_payloads_x_idx ON app.message_payloads (message_id);"
        ),
        [
            "-- Blocks writes to app.message_payloads while the index is built.",
            "CREATE INDEX message_payloads_x_idx ON app.message_payloads",
        ],
    ),
    "renamed_index": (
        replace("stripe_events_received_at_idx", "stripe_events_received_idx"),
        [
            "ALTER INDEX app.stripe_events_received_at_idx"
            " RENAME TO stripe_events_received_idx;"
        ],
    ),
    "renamed_constraint": (
        replace("stripe_customers_id_length_check", "stripe_customers_id_size_check"),
        [
            "    RENAME CONSTRAINT stripe_customers_id_length_check\n"
            "    TO stripe_customers_id_size_check;"
        ],
    ),
    "changed_index_with_comment_and_settings": (
        combine(
            replace(
                "sessions_fingerprint_id_idx ON app.sessions (fingerprint_id);",
                "sessions_fingerprint_id_idx ON app.sessions (fingerprint_id)"
                " INCLUDE (user_id);",
            ),
            add(
                "COMMENT ON INDEX app.sessions_fingerprint_id_idx IS 'Ours, too.';\n"
                "ALTER TABLE app.sessions CLUSTER ON sessions_fingerprint_id_idx;"
            ),
        ),
        [
            "-- sessions_fingerprint_id_idx stays until this index is valid",
            "DROP INDEX CONCURRENTLY app.sessions_fingerprint_id_idx;",
            "-- squawk-ignore renaming-object\n"
            "ALTER INDEX app.sessions_fingerprint_id_idx_new"
            " RENAME TO sessions_fingerprint_id_idx;\n\n"
            "COMMENT ON INDEX app.sessions_fingerprint_id_idx IS 'Ours, too.';\n\n"
            "ALTER TABLE app.sessions CLUSTER ON sessions_fingerprint_id_idx;",
        ],
    ),
    "unique_index_instead_of_constraint": (
        combine(
            replace(
                "    CONSTRAINT referrals_referred_id_key UNIQUE (referred_id),\n", ""
            ),
            add(
                "CREATE UNIQUE INDEX referrals_referred_id_key"
                " ON app.referrals (referred_id);"
            ),
        ),
        [
            "CREATE UNIQUE INDEX CONCURRENTLY referrals_referred_id_key_new",
            "DROP CONSTRAINT referrals_referred_id_key;",
        ],
    ),
    "new_foreign_key_to_a_new_key": (
        add(
            "ALTER TABLE app.plan_prices ADD COLUMN credits numeric;\n"
            "ALTER TABLE app.plan_prices ADD CONSTRAINT plan_prices_credits_fkey"
            " FOREIGN KEY (credits, plan_id) REFERENCES app.plans (monthly_credits, id)"
            " ON DELETE RESTRICT;"
        ),
        ["-- Blocks writes to app.plan_prices while its rows are checked.\nALTER"],
    ),
    "exclusion_constraint": (
        add(
            "ALTER TABLE app.plan_prices ADD CONSTRAINT plan_prices_one_excl"
            " EXCLUDE USING btree (stripe_price_id WITH =);"
        ),
        ["-- Blocks reads and writes of app.plan_prices while the index is built."],
    ),
    "renamed_column": (
        replace("sig_hash", "signature_hash"),
        ["ALTER TABLE app.fingerprints RENAME COLUMN sig_hash TO signature_hash;"],
    ),
}
RENAMES = [Rename("fingerprints", "sig_hash", "signature_hash")]
# Before PostgreSQL 17 such a column is dropped and added, so it becomes the last.
NEEDS_17 = "changed_generated_expression"


@dataclass(frozen=True)
class Drafted:
    """The migrations that make all CHANGES."""

    sql: Path
    folder: Path
    written: list[Path]

    @cached_property
    def text(self) -> str:
        return "".join(part for file in self.written for part in read_pair(file))


def version(url: str) -> int:
    with psycopg.connect(url) as conn:
        return conn.info.server_version // 10000


@pytest.fixture(scope="module")
def drafted(
    url: str, base: tuple[str, Objects], tmp_path_factory: pytest.TempPathFactory
) -> Drafted:
    """Draft all changes together, because each proof takes a second."""
    parent = tmp_path_factory.mktemp("drafted")
    sql = write_sql(parent, combine(*(change for change, _ in chosen(url).values())))
    folder = shutil.copytree(migrations_dir(), parent / "migrations")
    written = generate(
        url, "change_all", schema=sql, folder=folder, base=base[0], renames=RENAMES
    )
    return Drafted(sql, folder, written)


def chosen(url: str) -> dict[str, tuple[Change, list[str]]]:
    """Return the changes that the server can make."""
    names = [name for name in CHANGES if name != NEEDS_17 or version(url) >= 17]
    return {name: CHANGES[name] for name in names}


@pytest.mark.parametrize("name", CHANGES)
def test_change_is_drafted(url: str, drafted: Drafted, name: str) -> None:
    _, expected = chosen(url).get(name, (None, []))
    assert [part for part in expected if part not in drafted.text] == []


def test_drafts_are_applied_and_rolled_back(
    url: str, base: tuple[str, Objects], drafted: Drafted
) -> None:
    database, before = base
    count, text = len(drafted.written), drafted.text
    assert text.count("lock_timeout = '5s'") + text.count(": false") == 2 * count
    with (
        scratch_database(url, template=database) as applied,
        scratch_database(url) as wanted,
    ):
        migrate(applied, drafted.folder)
        load_schema(wanted, drafted.sql)
        assert read_objects(applied) == read_objects(wanted)
        rollback(applied, drafted.folder, count=count)
        assert read_objects(applied) == before


def test_changed_expression_needs_17_or_loses_the_column(
    url: str, base: tuple[str, Objects], folder: Path, schema: Callable[[Change], Path]
) -> None:
    change, _ = CHANGES[NEEDS_17]
    arguments: Any = {"schema": schema(change), "folder": folder, "base": base[0]}
    if version(url) >= 17:
        (path,) = generate(url, "change_it", **arguments)
        assert "SET EXPRESSION AS (base_quota);" in path.read_text()
        return
    with pytest.raises(GenerateError, match=r"would lose app\.users\.quota"):
        generate(url, "change_it", **arguments)
    with pytest.raises(GenerateError, match=r"write TABLE app\.users by hand"):
        generate(url, "change_it", **arguments, allow_destructive=True)


def test_unreadable_statement_is_named_with_file_and_line() -> None:
    with pytest.raises(GenerateError, match=r"^b\.sql:3 cannot be read: syntax error"):
        read_sources({"a.sql": "SELECT 1;\n", "b.sql": "SELECT 1;\n\nSELEC 2;\n"})


def test_last_statement_of_a_file_may_lack_its_semicolon(
    url: str,
    base: tuple[str, Objects],
    folder: Path,
    schema: Callable[[Change], Path],
) -> None:
    files = schema(add("\nCREATE INDEX users_name_idx ON app.users (name)"))
    (up,) = generate(url, "index_names", schema=files, folder=folder, base=base[0])
    assert "users_name_idx" in up.read_text()


def test_object_that_no_file_defines_is_drafted_from_the_dump(
    url: str, base: tuple[str, Objects]
) -> None:
    database, before = base
    with scratch_database(url, template=database) as copy:
        with psycopg.connect(copy) as conn:
            conn.execute(NOTES.encode())
        wanted = read_objects(copy)
    drafter = StructureDrafter(read_side(before, {}), read_side(wanted, {}))
    steps = [step for change in drafter.draft() for step in change.up]

    with scratch_database(url, template=database) as copy:
        with psycopg.connect(copy) as conn:
            for step in steps:
                conn.execute(step.sql.encode())
        assert read_objects(copy) == wanted


def test_destructive_step_is_marked_with_its_loss(
    url: str, base: tuple[str, Objects], folder: Path, schema: Callable[[Change], Path]
) -> None:
    start = SCHEMA.index("CREATE TABLE app.stripe_sync_runs")
    end = (SCHEMA + "\n-- ---").index("\n-- ---", start)
    (path,) = generate(
        url,
        "drop_sync_runs",
        why="No query reads them.",
        schema=schema(lambda text: text[:start] + text[end:]),
        folder=folder,
        base=base[0],
        allow_destructive=True,
    )
    assert path.read_text(encoding="ascii") == (
        "-- No query reads them.\n\nSET LOCAL lock_timeout = '5s';\n\n"
        "-- Destructive: loses app.stripe_sync_runs.\n"
        "DROP TABLE app.stripe_sync_runs;\n"
    )
    back = path.with_suffix(".rollback.sql").read_text(encoding="ascii")
    assert "What app.stripe_sync_runs held does not come back." in back.splitlines()[0]


def test_long_names_are_kept_within_63_characters(
    url: str, base: tuple[str, Objects], folder: Path, schema: Callable[[Change], Path]
) -> None:
    name = f"users_{'x' * 52}_check"
    assert len(name) == 64
    text = f"ALTER TABLE app.users ADD CONSTRAINT {name} CHECK (name <> 'x');"
    files = schema(add(text))
    generate(url, "add_check", schema=files, folder=folder, base=base[0])
    (files / "schema.sql").write_text(f"{SCHEMA}\n" + text.replace("'x'", "'y'"))

    paths = generate(url, "change_check", schema=files, folder=folder)

    assert f"ADD CONSTRAINT {name[:59]}_new" in paths[0].read_text()
    assert f"RENAME CONSTRAINT {name[:59]}_new\n    TO {name[:63]};" in (
        paths[2].read_text()
    )


def test_last_number_is_9999(folder: Path) -> None:
    last = max(folder.glob("*[a-z].sql"))
    for path in (last, last.with_suffix(".rollback.sql")):
        path.rename(folder / f"9999{path.name[4:]}")
    with pytest.raises(GenerateError, match="9999 is the last one"):
        write_migrations(folder, [NewMigration("x", "SELECT 1;", "SELECT 1;")])
