"""`pyapp db adopt` marks migrations on a database that was built in another way."""

import gzip
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pyapp.devtools.checks.schema_diff import check, load_schema
from pyapp.devtools.migrations import adopt as adoption
from pyapp.devtools.migrations.adopt import adopt
from pyapp.devtools.migrations.files import read_migrations
from pyapp.devtools.migrations.migrator import list_migrations, migrate, rollback
from pyapp.errors import MigrationError, SchemaCheckError
from pyapp.stripe_sync.pages import Cursor
from pyapp.stripe_sync.replay import EventCursor
from tests.backups import rows_of
from tests.support import run_cli

# A dump by pg_dump --inserts, of a database with migrations 0001 to 0021 and some rows.
EARLIER = Path(__file__).parent / "data" / "earlier_history.sql.gz"
NAMES = [file.name for file in read_migrations()]
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


def execute(url: str, statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(statements.encode())


def states(url: str) -> dict[str, str]:
    return {status.name: status.state for status in list_migrations(url)}


def marks(url: str) -> list[tuple[object, ...]]:
    """Return yoyo's marks and the checksums of pyapp."""
    with psycopg.connect(url) as conn:
        return conn.execute(
            "SELECT m, c FROM public._yoyo_migration AS m"
            " LEFT JOIN public.pyapp_migration_checksums AS c USING (migration_id)"
            " ORDER BY m.migration_id"
        ).fetchall()


def test_earlier_history_is_brought_over_with_its_rows(earlier: str) -> None:
    before = rows_of(earlier)
    assert all(before.values())

    assert adopt(earlier) == NAMES

    # The status received is gone; its event is retried as a failed one.
    (event,) = before["stripe_events"]
    before["stripe_events"] = [
        event.replace("received,0,,", 'failed,0,"it was never applied",')
    ]
    assert rows_of(earlier) == before
    assert states(earlier) == dict.fromkeys(NAMES, "applied")
    assert [
        difference.title
        for comparison in check(earlier).comparisons
        for difference in comparison.differences
    ] == []


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

    assert rollback(earlier) == NAMES[-1:]
    assert migrate(earlier) == NAMES[-1:]

    assert rows_of(earlier) == before
    assert check(earlier).differences == 0


def test_new_functions_keep_their_privileges_from_public(earlier: str) -> None:
    adopt(earlier)

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


@pytest.mark.parametrize("moment", ["mark_one", "log_migration", "commit"])
def test_killed_adoption_changes_nothing_and_can_be_repeated(
    earlier: str, moment: str
) -> None:
    before = rows_of(earlier), marks(earlier)

    run = subprocess.run([sys.executable, "-c", KILLED, earlier, moment])

    assert run.returncode == -signal.SIGKILL
    assert (rows_of(earlier), marks(earlier)) == before
    assert adopt(earlier) == NAMES
    assert check(earlier).differences == 0


def test_second_adoption_changes_nothing(earlier: str) -> None:
    adopt(earlier)
    before = marks(earlier)

    assert adopt(earlier) == []

    assert marks(earlier) == before


@pytest.mark.parametrize("command", ["migrate", "rollback --yes", "check"])
def test_other_commands_refuse_the_earlier_history(
    earlier: str, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", earlier)
    monkeypatch.setenv("ENVIRONMENT", "local")
    before = rows_of(earlier), marks(earlier)

    code, _, err = run_cli("db", *command.split())

    assert (code, err.count("\n")) == (1, 1)
    assert err.endswith("pyapp db adopt\n")
    assert (rows_of(earlier), marks(earlier)) == before


def test_commands_name_the_earlier_history(
    earlier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", earlier)
    _, out, _ = run_cli("db", "status")
    assert "0001_create_plans: of an earlier history; run: pyapp db adopt\n" in out
    assert states(earlier)["0021_drop_messages_fingerprint_id_idx"] == "earlier"

    code, out, _ = run_cli("db", "adopt")

    assert (code, out.splitlines()[0]) == (0, "Marked 0001_create_plans")
    assert run_cli("db", "adopt")[1].startswith("Nothing to adopt")


def test_part_of_the_earlier_history_is_refused(earlier: str) -> None:
    execute(earlier, "DELETE FROM public._yoyo_migration WHERE migration_id > '0015'")
    before = marks(earlier)

    with pytest.raises(
        MigrationError, match=r"up to 0014.* only 0021.* can be adopted"
    ):
        adopt(earlier)

    assert marks(earlier) == before


@pytest.mark.parametrize(
    ("drift", "title"),
    [
        ("CREATE INDEX extra_idx ON app.users (name)", "INDEX app.extra_idx"),
        ("ALTER TABLE app.sessions ADD COLUMN extra text", "TABLE app.sessions"),
        ("CREATE FUNCTION app.extra() RETURNS int RETURN 1", r"FUNCTION app\.extra"),
        (
            "CREATE TRIGGER extra BEFORE UPDATE ON app.users"
            " FOR EACH ROW EXECUTE FUNCTION app.set_updated_at()",
            "TRIGGER app.users extra",
        ),
    ],
)
def test_drift_is_named_and_nothing_is_changed(
    earlier: str, drift: str, title: str
) -> None:
    execute(earlier, drift)
    before = marks(earlier)

    with pytest.raises(SchemaCheckError, match=f"{title}.*nothing was changed"):
        adopt(earlier)

    assert marks(earlier) == before
    assert states(earlier)["0021_drop_messages_fingerprint_id_idx"] == "earlier"


def test_function_changed_by_hand_is_not_overwritten(earlier: str) -> None:
    execute(
        earlier,
        "CREATE OR REPLACE FUNCTION app.set_updated_at() RETURNS trigger"
        " LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp"
        " AS $$ BEGIN RETURN NEW; END; $$",
    )

    with pytest.raises(SchemaCheckError, match=r"functions differ .*: set_updated_at;"):
        adopt(earlier)


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
    prove = adoption._prove

    def prove_late(*arguments: Any) -> list[str]:
        statements = prove(*arguments)
        execute(earlier, "CREATE INDEX extra_idx ON app.users (name)")
        return statements

    monkeypatch.setattr(adoption, "_prove", prove_late)
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
    assert adopt(earlier) == NAMES
