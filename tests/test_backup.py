"""The commands of docs/backup.md restore equal rows; other restores are exact or fail.

psql, pg_dump and pg_restore are those of the server's version.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyapp._core.connection import connect
from pyapp.data_check import check_data
from pyapp.devtools.migrations.migrator import migrate
from pyapp.devtools.server.binaries import binaries
from tests.backups import commands_of, fill, rows_of, run, without_slots

Restore = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def source(module_database: str) -> str:
    """Return the URL of a migrated and filled database, which is dumped."""
    with connect(module_database) as conn:
        conn.execute("DROP SCHEMA app CASCADE")
    migrate(module_database)
    fill(module_database)
    return module_database


@pytest.fixture
def target(empty_database: str) -> str:
    """Return the URL of an empty database, in which dumps are restored."""
    return empty_database


@pytest.fixture(scope="module")
def clients(programs: Path | None) -> Path:
    """Return the folder of the client programs of the server's version."""
    return programs or binaries()


@pytest.fixture
def pg_restore(clients: Path, dump: Path) -> Restore:
    """Return a function that runs pg_restore on the dump."""

    def restore(url: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = [str(clients / "pg_restore"), *options, f"--dbname={url}", str(dump)]
        return subprocess.run(command, capture_output=True, text=True)

    return restore


def test_full_restore_has_equal_rows(
    source: str, target: str, clients: Path, tmp_path: Path
):
    done = run(commands_of("Everything"), tmp_path, source, target, clients)

    assert done.returncode == 0, done.stderr
    assert rows_of(target) == rows_of(source)
    assert check_data(target, limit=1).remaining == 0


def test_restore_of_the_rows_has_equal_rows(
    source: str, target: str, clients: Path, tmp_path: Path
):
    migrate(target)

    done = run(commands_of("Only the rows"), tmp_path, source, target, clients)

    assert done.returncode == 0, done.stderr
    restored, dumped = rows_of(target), rows_of(source)
    assert restored["usage_slots"] != dumped["usage_slots"]
    assert without_slots(restored) == without_slots(dumped)


@pytest.fixture(scope="module")
def dump(source: str, clients: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dump of the whole database with default options."""
    path = tmp_path_factory.mktemp("dump") / "pyapp.dump"
    command = [str(clients / "pg_dump"), "-Fc", f"--file={path}", source]
    subprocess.run(command, check=True)
    return path


@pytest.fixture(scope="module")
def dumped(source: str) -> dict[str, list[str]]:
    """Return the rows of the dump."""
    return rows_of(source)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--exit-on-error"],
        ["--single-transaction"],
        ["--jobs=2"],
        ["--disable-triggers"],
        ["--disable-triggers", "--jobs=2"],
        ["--disable-triggers", "--single-transaction"],
    ],
    ids=lambda options: " ".join(options) or "plain",
)
@pytest.mark.parametrize("has_months", [True, False], ids=["months", "no months"])
def test_other_restores_of_the_rows_are_exact_or_fail(
    pg_restore: Restore,
    dumped: dict[str, list[str]],
    database: str,
    options: list[str],
    has_months: bool,
):
    """No sum is wrong in the end, and pg_restore reports rows that are missing.

    When repeated, it can restore a table that depended on a later one.
    """
    with connect(database) as conn:
        conn.execute("DELETE FROM app.plans")
        if has_months:
            conn.execute(
                "SELECT app.create_payload_partitions("
                "(now() - interval '9 months')::date, 12)"
            )

    restore = ("--data-only", "--schema=app", *options)
    first = pg_restore(database, *restore)
    check_restored(database, dumped)
    once = rows_of(database)
    for _ in range(2):
        pg_restore(database, *restore)
    check_restored(database, dumped)

    if not once["users"] or once != dumped:
        assert first.returncode != 0
        assert "error" in first.stderr
    if has_months and "--disable-triggers" in options:
        assert once == dumped == rows_of(database)
        assert first.returncode == 0


def check_restored(url: str, dumped: dict[str, list[str]]) -> None:
    """Check that each table is restored or empty, and that the sums are right."""
    restored = rows_of(url)
    # Referral credits that were given by hand are not compared.
    assert check_data(url, limit=1).usage.found == 0
    for table in ("users", "referrals", "messages", "usage_daily"):
        assert restored[table] in (dumped[table], []), table


def test_referrals_without_their_users_are_refused(pg_restore: Restore, database: str):
    """The totals of these users do not include the dump's referrals."""
    with connect(database) as conn:
        conn.execute(
            "INSERT INTO app.users (id, email) SELECT md5('user' || n)::uuid,"
            " 'user' || n || '@example.com' FROM generate_series(1, 20) AS n"
        )

    done = pg_restore(database, "--data-only", "--schema=app", "--table=referrals")

    assert done.returncode == 1
    assert "the user's totals: restore users before referrals" in done.stderr
    with connect(database) as conn:
        row = conn.execute(
            "SELECT sum(referral_count), sum(referral_credits),"
            " (SELECT count(*) FROM app.referrals) FROM app.users"
        ).fetchone()
    assert row == (0, 0, 0)
