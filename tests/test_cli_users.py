"""`pyapp users` adds and lists the users that other commands name."""

import pytest

from pyapp._core.connection import connect
from pyapp.users import anonymize_user, create_user
from tests.support import run_cli


def test_users_are_added_and_listed_with_their_ids(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database)
    with connect(database) as conn:
        gone = create_user(conn, email="gone@example.com")
        anonymize_user(conn, user_id=gone.id)

    code, added, _ = run_cli("users", "add", " Bo@example.com", "--name", "Bo \x1b[7m")
    *_, user_id = added.split()
    _, listed, _ = run_cli("users", "list")

    assert (code, added) == (0, f"Bo@example.com is user {user_id}\n")
    assert sorted(listed.splitlines()) == sorted(
        [
            f"{gone.id}  (anonymized)",
            f"{user_id}  Bo@example.com  Bo \N{REPLACEMENT CHARACTER}[7m",
        ]
    )


def test_an_address_can_be_added_once(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database)
    run_cli("users", "add", "ada@example.com")

    code, out, err = run_cli("users", "add", "ADA@example.com")

    assert (code, out) == (1, "")
    assert err == "error: another user has this e-mail\n"
