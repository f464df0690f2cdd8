"""docs/backup.md: each documented way ends in equal rows, sums and a green check.

The commands run as they are printed: psql, pg_dump and pg_restore of the server's
version, and pyapp.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyapp._core.connection import connect
from pyapp.data_check import check_data
from pyapp.devtools.migrations.migrator import migrate
from pyapp.devtools.server.binaries import binaries
from tests.backups import commands_of, fill, rows_of, run

Restore = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def source(module_database: str) -> str:
    """Return the URL of the database that is backed up, migrated and filled."""
    with connect(module_database) as conn:
        conn.execute("DROP SCHEMA app CASCADE")
    migrate(module_database)
    fill(module_database)
    return module_database


@pytest.fixture
def target(empty_database: str) -> str:
    """Return the URL of the empty database in which a dump is restored."""
    return empty_database


@pytest.fixture(scope="module")
def clients(programs: Path | None) -> Path:
    """Return the folder of psql, pg_dump and pg_restore of the server's version."""
    return programs or binaries()


@pytest.fixture
def pg_restore(clients: Path, dump: Path) -> Restore:
    """Return what restores the dump at a URL, with options."""

    def restore(url: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = [str(clients / "pg_restore"), *options, f"--dbname={url}", str(dump)]
        return subprocess.run(command, capture_output=True, text=True)

    return restore


def test_full_restore_is_equal(source: str, target: str, clients: Path, tmp_path: Path):
    done = run(commands_of("Everything"), tmp_path, source, target, clients)

    assert done.returncode == 0, done.stderr
    assert rows_of(target) == rows_of(source)
    assert check_data(target, limit=1).remaining == 0


def test_restore_of_the_rows_is_equal(
    source: str, target: str, clients: Path, tmp_path: Path
):
    migrate(target)

    done = run(commands_of("Only the rows"), tmp_path, source, target, clients)

    assert done.returncode == 0, done.stderr
    assert rows_of(target) == rows_of(source)


@pytest.fixture(scope="module")
def dump(source: str, clients: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dump of everything, as it is made without a thought for restoring."""
    path = tmp_path_factory.mktemp("dump") / "pyapp.dump"
    command = [str(clients / "pg_dump"), "-Fc", f"--file={path}", source]
    subprocess.run(command, check=True)
    return path


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
@pytest.mark.parametrize("times", [1, 3])
def test_other_restores_of_the_rows_are_exact_or_fail(
    pg_restore: Restore,
    source: str,
    target: str,
    options: list[str],
    has_months: bool,
    times: int,
):
    """No sum is wrong in the end, and rows that are not restored are reported.

    Repeating it, too: a table whose first try came too early gets its turn.
    """
    migrate(target)
    with connect(target) as conn:
        conn.execute("DELETE FROM app.plans")
        if has_months:
            months = (
                "SELECT app.create_payload_partitions((now() - interval '9 months')"
            )
            conn.execute(f"{months}::date, 12)".encode())

    done = [
        pg_restore(target, "--data-only", "--schema=app", *options)
        for _ in range(times)
    ]

    ours, theirs = rows_of(source), rows_of(target)
    # What was redeemed by hand on top is not part of the comparison.
    assert check_data(target, limit=1).usage.found == 0
    assert theirs["users"] in (ours["users"], [])
    for table in ("referrals", "messages", "usage_daily"):
        assert theirs[table] in (ours[table], []), table
    if not theirs["users"] or theirs != ours:
        assert done[0].returncode != 0
        assert "error" in done[0].stderr
    if has_months and "--disable-triggers" in options:
        assert theirs == ours
        assert done[0].returncode == 0


def test_dump_whose_users_were_not_restored_first_is_refused(
    pg_restore: Restore, target: str
):
    """The count of a user made by other means does not include the dump's referrals."""
    migrate(target)
    with connect(target) as conn:
        conn.execute(
            "INSERT INTO app.users (id, email) SELECT md5('user' || n)::uuid,"
            " 'user' || n || '@example.com' FROM generate_series(1, 20) AS n"
        )

    done = pg_restore(target, "--data-only", "--schema=app", "--table=referrals")

    assert done.returncode == 1
    assert "is not in the user's totals: restore users before referrals" in done.stderr
    with connect(target) as conn:
        row = conn.execute(
            "SELECT sum(referral_count), sum(referral_credits),"
            " (SELECT count(*) FROM app.referrals) FROM app.users"
        ).fetchone()
    assert row == (0, 0, 0)
