"""`pyapp db adopt` marks migrations on a database that was built in another way."""

import gzip
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer

from pyapp._core.queries import migrations_dir, sql_dir
from pyapp.cli.app import make_app
from pyapp.devtools.checks.dumps import dump_objects
from pyapp.devtools.checks.schema_diff import check, load_schema
from pyapp.devtools.migrations import adopt as adoption
from pyapp.devtools.migrations.adopt import adopt
from pyapp.devtools.migrations.files import read_migrations
from pyapp.devtools.migrations.history import SQUASHED
from pyapp.devtools.migrations.migrator import (
    list_migrations,
    migrate,
    pending,
    rollback,
)
from pyapp.errors import MigrationError, SchemaCheckError
from pyapp.stripe_sync.pages import Cursor
from pyapp.stripe_sync.replay import EventCursor
from tests.backups import rows_of
from tests.role_logins import role_logins
from tests.support import execute, run_cli, states, yoyo

# A dump by pg_dump --inserts, of a database with migrations 0001 to 0021 and some rows.
EARLIER = Path(__file__).parent / "data" / "earlier_history.sql.gz"
NAMES = [file.name for file in read_migrations()]
LATER = """
SET LOCAL lock_timeout = '5s';

ALTER TABLE app.users ADD COLUMN planted text;
COMMENT ON COLUMN app.users.planted IS 'Planted by a test.';
CREATE INDEX users_planted_idx ON app.users (planted);
CREATE OR REPLACE FUNCTION app.is_active_status(status text)
RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN coalesce(status IN ('active', 'trialing', 'past_due', 'paused'), FALSE);
"""
KILLED = """
import os, signal, sys
from pyapp.devtools.migrations import session
from pyapp.devtools.migrations.adopt import adopt

def kill(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(session.Backend, sys.argv[2], kill)
adopt(sys.argv[1])
"""


@pytest.fixture
def earlier(empty_database: str) -> str:
    """Return a database with rows and all migrations of the earlier history."""
    execute(empty_database, gzip.decompress(EARLIER.read_bytes()).decode())
    return empty_database


def marks(url: str) -> list[tuple[object, ...]]:
    """Return yoyo's marks and the checksums of pyapp."""
    with psycopg.connect(url) as conn:
        return conn.execute(
            "SELECT m, c FROM public._yoyo_migration AS m"
            " LEFT JOIN public.pyapp_migration_checksums AS c USING (migration_id)"
            " ORDER BY m.migration_id"
        ).fetchall()


@pytest.mark.parametrize("error", ["", "kept"])
def test_earlier_history_is_brought_over_with_its_rows(
    earlier: str, error: str
) -> None:
    execute(earlier, f"UPDATE app.stripe_events SET last_error = nullif('{error}', '')")
    before = rows_of(earlier)
    assert all(before.values())
    assert adopt(earlier) == list(SQUASHED)

    # The status received is gone; its event is retried as a failed one.
    (event,) = before["stripe_events"]
    failed = error or '"it was never applied"'
    before["stripe_events"] = [
        event.replace(f"received,0,{error},", f"failed,0,{failed},")
    ]
    assert rows_of(earlier) == before
    assert pending(earlier) == NAMES[len(SQUASHED) :]
    migrate(earlier)
    assert states(earlier) == dict.fromkeys(NAMES, "applied")
    assert check(earlier).differences == 0


def test_squashed_migrations_are_the_first_of_the_folder() -> None:
    assert NAMES[: len(SQUASHED)] == list(SQUASHED)


@pytest.fixture
def later(tmp_path: Path) -> tuple[Path, Path]:
    """Return migrations with one more, and SQL files with the same change."""
    folder, schema = tmp_path / "migrations", tmp_path / "sql"
    shutil.copytree(migrations_dir(), folder)
    shutil.copytree(sql_dir(), schema)
    (folder / "9000_add_planted.sql").write_text(f"-- Planted by a test.\n{LATER}")
    (folder / "9000_add_planted.rollback.sql").write_text(
        "ALTER TABLE app.users DROP COLUMN planted;\n"
    )
    # The last of the files.
    (schema / "functions" / "zz_later.sql").write_text(LATER)
    return folder, schema


def test_migrations_after_the_squash_stay_pending(
    earlier: str, later: tuple[Path, Path]
) -> None:
    folder, schema = later

    assert adopt(earlier, folder=folder, schema=schema) == list(SQUASHED)

    assert migrate(earlier, folder)[-1:] == ["9000_add_planted"]
    assert check(earlier, folder=folder, schema=schema).differences == 0


def test_all_migrations_of_a_schema_built_by_psql_are_marked(
    empty_database: str, later: tuple[Path, Path]
) -> None:
    folder, schema = later
    load_schema(empty_database, schema)

    marked = adopt(empty_database, folder=folder, schema=schema)

    assert marked == [*NAMES, "9000_add_planted"]
    assert check(empty_database, folder=folder, schema=schema).differences == 0


def test_interrupted_run_is_resumed_after_the_adoption(earlier: str) -> None:
    listed = {"noun": "subscriptions", "after": "sub_1", "created": 5, "tail": []}
    replayed = {"since": None, "after": "evt_1", "created": 5, "nameless": 2}
    insert = "INSERT INTO app.stripe_sync_runs (kind, cursor) VALUES (%s, %s)"
    with psycopg.connect(earlier) as conn:
        conn.execute(insert, ["reconcile", json.dumps(listed)])
        conn.execute(insert, ["replay", json.dumps(replayed)])
    adopt(earlier)
    with psycopg.connect(earlier) as conn:
        cursors = conn.execute(
            "SELECT r.cursor FROM app.stripe_sync_runs AS r ORDER BY r.id DESC LIMIT 2"
        ).fetchall()
    (replay_text,), (reconcile_text,) = cursors
    assert Cursor.load(reconcile_text) == Cursor("subscriptions", "sub_1", 5, [])
    assert EventCursor.load(replay_text, None) == EventCursor(None, "evt_1", 5, 2)


def test_adopted_database_rolls_back_and_migrates(earlier: str) -> None:
    adopt(earlier)
    before = rows_of(earlier)

    assert rollback(earlier) == [SQUASHED[-1]]
    assert migrate(earlier, names=SQUASHED) == [SQUASHED[-1]]

    assert rows_of(earlier) == before
    migrate(earlier)
    assert check(earlier).differences == 0


def test_new_functions_keep_their_privileges_from_public(earlier: str) -> None:
    adopt(earlier)
    migrate(earlier)

    with psycopg.connect(earlier) as conn:
        adopted = conn.execute(PUBLIC_FUNCTIONS).fetchall()
    rollback(earlier, count=None)
    migrate(earlier)
    with psycopg.connect(earlier) as conn:
        assert adopted == conn.execute(PUBLIC_FUNCTIONS).fetchall()


PUBLIC_FUNCTIONS = """
    SELECT p.oid::regprocedure::text FROM pg_proc AS p
    CROSS JOIN aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
    WHERE p.pronamespace = 'app'::regnamespace AND a.grantee = 0 ORDER BY 1
"""


def test_schema_built_by_psql_is_adopted(empty_database: str) -> None:
    load_schema(empty_database)
    execute(empty_database, "INSERT INTO app.users (email) VALUES ('a@example.com')")
    before = rows_of(empty_database)

    assert adopt(empty_database) == NAMES

    assert rows_of(empty_database) == before
    assert check(empty_database).differences == 0
    assert migrate(empty_database) == []


def test_commands_name_adopt_for_a_schema_built_by_psql(empty_database: str) -> None:
    load_schema(empty_database)
    with pytest.raises(SchemaCheckError, match="run: pyapp db adopt"):
        check(empty_database)
    with pytest.raises(MigrationError, match="run pyapp db adopt"):
        migrate(empty_database)
    assert adopt(empty_database) == NAMES


def test_plain_yoyo_changes_nothing_of_the_earlier_history(earlier: str) -> None:
    before = rows_of(earlier)
    with pytest.raises(subprocess.CalledProcessError):
        yoyo(earlier, "apply")
    assert rows_of(earlier) == before
    assert adopt(earlier) == list(SQUASHED)


@pytest.mark.parametrize("moment", ["mark_one", "log_migration", "commit"])
def test_killed_adoption_changes_nothing_and_can_be_repeated(
    earlier: str, moment: str
) -> None:
    before = rows_of(earlier), marks(earlier)

    run = subprocess.run([sys.executable, "-c", KILLED, earlier, moment])

    assert run.returncode == -signal.SIGKILL
    assert (rows_of(earlier), marks(earlier)) == before
    assert adopt(earlier) == list(SQUASHED)
    migrate(earlier)
    assert check(earlier).differences == 0


def test_second_adoption_changes_nothing(earlier: str) -> None:
    adopt(earlier)
    before = marks(earlier)

    assert adopt(earlier) == []

    assert marks(earlier) == before


# Commands that only start, stop or describe a server, or work on files.
WITHOUT_SCHEMA = {"start", "stop", "status", "reset", "erase-archived"}
REFUSING = (
    "migrate",
    "rollback --yes",
    "check",
    "check --data",
    "generate add_planted",
    "maintain",
    "docs",
    "docs --check",
    "plan find_user_by_email",
    "roles",
)


def test_each_command_refuses_or_does_not_need_the_schema() -> None:
    app: Any = typer.main.get_command(make_app())
    names = set(app.commands["db"].commands)
    assert names - WITHOUT_SCHEMA - {"adopt"} == {text.split()[0] for text in REFUSING}


@pytest.mark.parametrize("command", REFUSING)
def test_commands_refuse_the_earlier_history(
    earlier: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", earlier)
    monkeypatch.setenv("ENVIRONMENT", "local")
    monkeypatch.chdir(tmp_path)
    before = rows_of(earlier), marks(earlier)

    code, out, err = run_cli("db", *command.split())

    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.endswith("pyapp db adopt\n")
    assert (rows_of(earlier), marks(earlier)) == before
    assert list(tmp_path.iterdir()) == []


def test_role_that_may_not_read_the_marks_can_use_the_schema(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(empty_database)
    with role_logins(empty_database) as logins:
        monkeypatch.setenv("DATABASE_URL", logins["pyapp_readonly"])
        code, _, err = run_cli("db", "plan", "list_users")
    assert (code, err) == (0, "")


@pytest.mark.parametrize("scratch", ["nope", "postgresql://localhost:1/none"])
def test_scratch_server_is_checked_if_there_is_nothing_to_adopt(
    empty_database: str, monkeypatch: pytest.MonkeyPatch, scratch: str
) -> None:
    migrate(empty_database)
    monkeypatch.setenv("DATABASE_URL", empty_database)

    code, out, err = run_cli("db", "adopt", "--scratch", scratch)

    assert (code, out, err.count("\n")) == (1, "", 1)


def test_commands_name_the_earlier_history(
    earlier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", earlier)
    _, out, _ = run_cli("db", "status")
    assert "0001_create_plans: of an earlier history; run: pyapp db adopt\n" in out
    assert states(earlier)["0021_drop_messages_fingerprint_id_idx"] == "earlier"

    code, out, _ = run_cli("db", "adopt")

    assert (code, out.splitlines()[0]) == (0, "Marked 0001_create_schema")
    later = {"marked": [], "pending": NAMES[len(SQUASHED) :]}
    assert json.loads(run_cli("db", "adopt", "--json")[1]) == later
    assert run_cli("db", "adopt")[1].startswith("Nothing to adopt")


def test_part_of_the_earlier_history_is_refused(earlier: str) -> None:
    execute(earlier, "DELETE FROM public._yoyo_migration WHERE migration_id > '0015'")
    before = marks(earlier)

    with pytest.raises(
        MigrationError, match=r"up to 0014.* only 0021.* can be adopted"
    ):
        adopt(earlier)

    assert marks(earlier) == before


# Changes by hand: of objects that the squash leaves alone, and of those it changes.
DRIFT = {
    "CREATE INDEX extra_idx ON app.users (name)": "INDEX app.extra_idx",
    "DROP INDEX app.messages_client_id_idx": "INDEX app.messages_client_id_idx",
    "ALTER TABLE app.sessions ADD COLUMN extra text": "TABLE app.sessions",
    "ALTER TABLE app.users ALTER referral_limit SET DEFAULT 9": "TABLE app.users",
    "ALTER TABLE app.stripe_events ALTER status SET DEFAULT 'failed'": (
        "TABLE app.stripe_events"
    ),
    "ALTER TABLE app.users DROP CONSTRAINT users_stripe_customer_id_key": (
        "CONSTRAINT app.users users_stripe_customer_id_key"
    ),
    "ALTER TABLE app.messages DISABLE TRIGGER messages_add_usage": (
        "TRIGGER app.messages messages_add_usage"
    ),
    "ALTER TABLE app.usage_daily DISABLE TRIGGER usage_daily_no_truncate": (
        "TRIGGER app.usage_daily usage_daily_no_truncate"
    ),
    "DROP TRIGGER users_set_updated_at ON app.users": (
        "TRIGGER app.users users_set_updated_at"
    ),
    "CREATE TRIGGER extra BEFORE UPDATE ON app.users"
    " FOR EACH ROW EXECUTE FUNCTION app.set_updated_at()": "TRIGGER app.users extra",
    "CREATE OR REPLACE TRIGGER messages_add_usage AFTER INSERT ON app.messages"
    " FOR EACH ROW WHEN (new.cost > 0) EXECUTE FUNCTION app.add_usage()": (
        "TRIGGER app.messages messages_add_usage"
    ),
    "CREATE OR REPLACE TRIGGER usage_daily_kept_by_trigger"
    " BEFORE INSERT OR DELETE OR UPDATE ON app.usage_daily FOR EACH STATEMENT"
    " WHEN (pg_trigger_depth() = 0)"
    " EXECUTE FUNCTION app.refuse_change('only the trigger of messages writes it')": (
        "TRIGGER app.usage_daily usage_daily_kept_by_trigger"
    ),
    "CREATE FUNCTION app.extra() RETURNS int RETURN 1": "FUNCTION app.extra()",
    "CREATE FUNCTION app.add_usage(n int) RETURNS int RETURN n": (
        "FUNCTION app.add_usage(integer)"
    ),
    "CREATE FUNCTION app.find_customer_owners(jsonb) RETURNS int RETURN 1": (
        "FUNCTION app.find_customer_owners(jsonb)"
    ),
    "DROP FUNCTION app.take_stripe_event": "FUNCTION app.take_stripe_event",
    "CREATE OR REPLACE FUNCTION app.is_active_status(status text) RETURNS boolean"
    " LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN"
    " coalesce(status IN ('active', 'trialing', 'past_due', 'unpaid'), FALSE)": (
        "FUNCTION app.is_active_status(text)"
    ),
    "CREATE OR REPLACE FUNCTION app.set_updated_at() RETURNS trigger LANGUAGE plpgsql"
    " SET search_path = pg_catalog, pg_temp AS $$ BEGIN RETURN NEW; END; $$": (
        "FUNCTION app.set_updated_at()"
    ),
    "CREATE OR REPLACE FUNCTION app.add_usage() RETURNS trigger LANGUAGE plpgsql"
    " SECURITY DEFINER SET search_path = pg_catalog, pg_temp"
    " AS $$ BEGIN RETURN NULL; END; $$": "FUNCTION app.add_usage()",
    "ALTER FUNCTION app.delete_session(bytea) SET statement_timeout = '1s'": (
        "FUNCTION app.delete_session(bytea)"
    ),
    "ALTER FUNCTION app.anonymize_user(uuid) SET statement_timeout = '1s'": (
        "FUNCTION app.anonymize_user(uuid)"
    ),
    "ALTER FUNCTION app.delete_session(bytea) SECURITY INVOKER": (
        "FUNCTION app.delete_session(bytea)"
    ),
    "ALTER FUNCTION app.grant_referral_credits() SECURITY INVOKER": (
        "FUNCTION app.grant_referral_credits()"
    ),
    "ALTER FUNCTION app.get_period_end(timestamptz, timestamptz) STABLE": (
        "FUNCTION app.get_period_end(timestamp with time zone,"
    ),
    "ALTER FUNCTION app.repair_usage_day(uuid, date) PARALLEL SAFE": (
        "FUNCTION app.repair_usage_day(uuid, date)"
    ),
    "CREATE OR REPLACE VIEW app.referral_drift AS SELECT d.* FROM (SELECT"
    " u.id AS user_id, u.referral_limit, u.referral_count AS kept_count,"
    " u.referral_credits AS kept_credits, 0::bigint AS completed_count,"
    " 0::numeric AS granted_credits FROM app.users AS u) AS d": (
        "VIEW app.referral_drift"
    ),
    "ALTER VIEW app.usage_drift SET (security_invoker = FALSE)": "VIEW app.usage_drift",
}


@pytest.mark.parametrize(("drift", "title"), DRIFT.items(), ids=[*DRIFT])
def test_drift_is_named_and_nothing_is_changed(
    earlier: str, drift: str, title: str
) -> None:
    execute(earlier, drift)
    before = dump_objects(earlier), marks(earlier)

    with pytest.raises(
        SchemaCheckError, match=f" in .*{re.escape(title)}.*nothing was changed"
    ):
        adopt(earlier)

    assert (dump_objects(earlier), marks(earlier)) == before
    assert states(earlier)["0021_drop_messages_fingerprint_id_idx"] == "earlier"


def test_comments_changed_by_hand_are_replaced(earlier: str) -> None:
    execute(earlier, "COMMENT ON COLUMN app.users.email IS 'Ours.'")

    adopt(earlier)

    migrate(earlier)
    assert check(earlier).differences == 0


def test_drift_of_a_schema_built_by_psql_is_shown(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database)
    load_schema(empty_database)
    execute(empty_database, "DROP INDEX app.messages_client_id_idx")

    code, out, err = run_cli("db", "adopt")

    assert code == 1
    assert "differs from the SQL files in INDEX app.messages_client_id_idx" in err
    assert "CREATE INDEX messages_client_id_idx" in out + err
    assert list_migrations(empty_database)[0].state == "pending"


def test_change_during_the_proof_is_refused(
    earlier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prove = adoption._prove_earlier

    def prove_late(*arguments: Any) -> list[str]:
        statements = prove(*arguments)
        execute(earlier, "CREATE INDEX extra_idx ON app.users (name)")
        return statements

    monkeypatch.setattr(adoption, "_prove_earlier", prove_late)
    before = marks(earlier)

    with pytest.raises(MigrationError, match="changed during the proof"):
        adopt(earlier)

    assert marks(earlier) == before


def test_empty_database_has_nothing_to_adopt(empty_database: str) -> None:
    with pytest.raises(MigrationError, match=r"no schema to adopt.*pyapp db migrate"):
        adopt(empty_database)


def test_waiting_for_a_lock_ends_and_changes_nothing(
    earlier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = marks(earlier)
    monkeypatch.setattr("pyapp.devtools.migrations.adopt.LOCK_WAIT_MS", 200)
    with psycopg.connect(earlier) as holder:
        holder.execute("LOCK TABLE app.users IN ACCESS SHARE MODE")

        with pytest.raises(MigrationError, match="too long for a lock"):
            adopt(earlier)

    assert marks(earlier) == before
    assert adopt(earlier) == list(SQUASHED)
