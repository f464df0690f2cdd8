"""Sessions: a token whose hash alone is stored, valid until an instant."""

import hashlib
import re
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from pyapp._core.connection import connect
from pyapp.errors import FingerprintNotFoundError, RuleError, UserNotFoundError
from pyapp.fingerprints import get_fingerprint
from pyapp.sessions import (
    create_session,
    delete_expired_sessions,
    delete_session,
    delete_user_sessions,
    extend_session,
    find_session,
)
from pyapp.users import get_user
from tests.metering import MICROSECOND, add_fingerprint, add_user

DAY = timedelta(days=1)


@pytest.fixture
def user_id(conn: psycopg.Connection) -> UUID:
    return add_user(conn)


def add_sessions(
    conn: psycopg.Connection, user_id: UUID, expiries: list[timedelta]
) -> None:
    """Add a session for each of *expiries*, which count from now."""
    conn.cursor().executemany(
        "INSERT INTO app.sessions (token_hash, user_id, created_at, expires_at)"
        " VALUES (sha256(gen_random_uuid()::text::bytea), %s, 'epoch', now() + %s)",
        [(user_id, expiry) for expiry in expiries],
    )


def count_sessions(conn: psycopg.Connection) -> int:
    row = conn.execute("SELECT count(*) FROM app.sessions").fetchone()
    assert row is not None
    return int(row[0])


def test_token_finds_the_session_with_its_user_and_device(
    conn: psycopg.Connection, user_id: UUID
):
    device = add_fingerprint(conn, sig_hash="x")
    new = create_session(conn, user_id=user_id, fingerprint_id=device)

    found = find_session(conn, token=new.token)

    assert found is not None
    assert found.session == new.session
    assert found.user == get_user(conn, user_id=user_id)
    assert found.fingerprint == get_fingerprint(conn, fingerprint_id=device)


def test_session_without_a_device_has_no_fingerprint(
    conn: psycopg.Connection, user_id: UUID
):
    found = find_session(conn, token=create_session(conn, user_id=user_id).token)

    assert found is not None
    assert found.fingerprint is None
    assert found.session.fingerprint_id is None


def test_session_lasts_thirty_days_unless_told_otherwise(
    conn: psycopg.Connection, user_id: UUID
):
    usual = create_session(conn, user_id=user_id).session
    short = create_session(conn, user_id=user_id, ttl=DAY).session

    assert usual.expires_at - usual.created_at == 30 * DAY
    assert short.expires_at - short.created_at == DAY


def test_token_is_32_random_bytes_url_safe_and_not_stored(
    conn: psycopg.Connection, user_id: UUID
):
    tokens = [create_session(conn, user_id=user_id).token for _ in range(20)]

    assert len(set(tokens)) == 20
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", token) for token in tokens)
    stored = {row[0] for row in conn.execute("SELECT token_hash FROM app.sessions")}
    assert stored == {hashlib.sha256(token.encode()).digest() for token in tokens}
    assert tokens[0] not in repr(create_session(conn, user_id=user_id))


@pytest.mark.parametrize("token", ["", "x", "a" * 43, "\0", "\ud800", "ä", "x" * 10**6])
def test_token_that_nobody_was_given_finds_nothing(
    conn: psycopg.Connection, user_id: UUID, token: str
):
    create_session(conn, user_id=user_id)

    assert find_session(conn, token=token) is None
    assert extend_session(conn, token=token) is None
    assert delete_session(conn, token=token) is False


def test_every_token_costs_one_query_however_wrong_it_is(
    database: str, monkeypatch: pytest.MonkeyPatch
):
    with connect(database) as conn:
        token = create_session(conn, user_id=add_user(conn)).token
        executed: list[object] = []
        execute = psycopg.Cursor.execute

        def count(cursor, *args, **kwargs):
            executed.append(args)
            return execute(cursor, *args, **kwargs)

        monkeypatch.setattr(psycopg.Cursor, "execute", count)
        for tried in (token, token[:-1], "", "\ud800"):
            executed.clear()
            find_session(conn, token=tried)

            assert len(executed) == 1


def test_session_is_valid_until_the_instant_at_which_it_expires(
    conn: psycopg.Connection, user_id: UUID
):
    new = create_session(conn, user_id=user_id)
    end = new.session.expires_at

    assert find_session(conn, token=new.token, at=end - MICROSECOND) is not None
    assert find_session(conn, token=new.token, at=end) is None


def test_session_expires_even_while_a_transaction_is_open(
    conn: psycopg.Connection, user_id: UUID
):
    new = create_session(conn, user_id=user_id, ttl=MICROSECOND)

    assert find_session(conn, token=new.token) is None
    assert extend_session(conn, token=new.token) is None


def test_extension_counts_from_now_and_never_shortens(
    conn: psycopg.Connection, user_id: UUID
):
    new = create_session(conn, user_id=user_id, ttl=2 * DAY)

    shorter = extend_session(conn, token=new.token, ttl=DAY)
    longer = extend_session(conn, token=new.token, ttl=3 * DAY)

    assert shorter == new.session
    assert longer is not None
    assert timedelta(days=3) < longer.expires_at - new.session.created_at < 4 * DAY


def test_session_that_outlived_its_user_finds_nothing(
    conn: psycopg.Connection, user_id: UUID
):
    new = create_session(conn, user_id=user_id)
    # Whoever restores a backup of sessions does this.
    conn.execute("UPDATE app.users SET email = NULL, anonymized_at = now()")

    assert find_session(conn, token=new.token) is None


def test_no_session_for_nobody(conn: psycopg.Connection, user_id: UUID):
    with pytest.raises(UserNotFoundError):
        create_session(conn, user_id=uuid4())
    with pytest.raises(FingerprintNotFoundError):
        create_session(conn, user_id=user_id, fingerprint_id=uuid4())

    assert count_sessions(conn) == 0


@pytest.mark.parametrize("ttl", [timedelta(0), -MICROSECOND, -DAY])
def test_session_ends_after_it_begins(
    conn: psycopg.Connection, user_id: UUID, ttl: timedelta
):
    with pytest.raises(RuleError, match="sessions_expires_after_created_check") as told:
        create_session(conn, user_id=user_id, ttl=ttl)

    assert str(told.value).startswith("give a ttl above 0 (")
    assert count_sessions(conn) == 0


def test_sign_out_ends_one_session(conn: psycopg.Connection, user_id: UUID):
    one, other = (create_session(conn, user_id=user_id) for _ in range(2))

    assert delete_session(conn, token=one.token) is True
    assert delete_session(conn, token=one.token) is False
    assert find_session(conn, token=one.token) is None
    assert find_session(conn, token=other.token) is not None


def test_sign_out_everywhere_ends_that_users_sessions_alone(
    conn: psycopg.Connection, user_id: UUID
):
    for _ in range(3):
        create_session(conn, user_id=user_id)
    other = create_session(conn, user_id=add_user(conn))

    assert delete_user_sessions(conn, user_id=user_id) == 3
    assert find_session(conn, token=other.token) is not None


def test_sweep_deletes_what_has_expired_the_oldest_first(
    conn: psycopg.Connection, user_id: UUID
):
    add_sessions(conn, user_id, [-n * DAY for n in range(5)] + [DAY])

    counts = [delete_expired_sessions(conn, limit=2)]
    left = conn.execute("SELECT min(expires_at) - now() FROM app.sessions").fetchone()
    counts += [delete_expired_sessions(conn, limit=2) for _ in range(3)]

    assert counts == [2, 2, 1, 0]
    assert left == (-2 * DAY,)
    assert count_sessions(conn) == 1


def test_sweeps_neither_wait_for_each_other_nor_for_a_sign_out(database: str):
    with connect(database) as conn, connect(database) as other:
        user = add_user(conn)
        add_sessions(conn, user, [-n * DAY for n in range(1, 7)])
        conn.commit()
        other.execute("SET lock_timeout = '1s'")

        assert delete_expired_sessions(conn, limit=4) == 4
        assert delete_expired_sessions(other, limit=4) == 2
        other.rollback()
        assert delete_user_sessions(conn, user_id=user) == 2
        assert delete_expired_sessions(other, limit=4) == 0


def test_times_are_the_same_instants_in_every_time_zone(database: str):
    at = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    with psycopg.connect(database) as conn:
        new = create_session(conn, user_id=add_user(conn))
        conn.execute("UPDATE app.sessions SET created_at = '2020-01-01+00'")
        conn.execute("UPDATE app.sessions SET expires_at = %s", [at])
        for zone in ("UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Apia"):
            conn.execute(f"SET TimeZone = '{zone}'".encode())

            found = find_session(conn, token=new.token, at=at - MICROSECOND)

            assert found is not None
            assert found.session.expires_at == at
            assert find_session(conn, token=new.token, at=at) is None
