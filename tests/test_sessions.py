"""Sessions: only the token's hash is stored; the first verification ends them."""

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
from pyapp.users import (
    get_user,
    mark_user_email_verified,
    set_user_email,
    set_user_profile,
)
from tests.metering import MICROSECOND, add_fingerprint, add_user
from tests.waiting import Pair, run_blocked

DAY = timedelta(days=1)
EMAIL = "Ada@Example.com"
OTHER = "ada@example.org"


@pytest.fixture
def user_id(conn: psycopg.Connection) -> UUID:
    return add_user(conn, email=EMAIL)


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


def sign_in(conn: psycopg.Connection, user_id: UUID) -> str:
    return create_session(conn, user_id=user_id).token


def is_valid(conn: psycopg.Connection, token: str) -> bool:
    return find_session(conn, token=token) is not None


def verify(conn: psycopg.Connection, user_id: UUID) -> None:
    mark_user_email_verified(conn, user_id=user_id, email=EMAIL)


def verify_by_sql(conn: psycopg.Connection, user_id: UUID) -> None:
    conn.execute(
        "UPDATE app.users SET email_verified_at = now() WHERE id = %s", [user_id]
    )


def test_token_finds_the_session_with_its_user_and_fingerprint(
    conn: psycopg.Connection, user_id: UUID
):
    fingerprint = add_fingerprint(conn, sig_hash="x")
    new = create_session(conn, user_id=user_id, fingerprint_id=fingerprint)

    found = find_session(conn, token=new.token)

    assert found is not None
    assert found.session == new.session
    assert found.user == get_user(conn, user_id=user_id)
    assert found.fingerprint == get_fingerprint(conn, fingerprint_id=fingerprint)


def test_session_needs_no_fingerprint(conn: psycopg.Connection, user_id: UUID):
    found = find_session(conn, token=sign_in(conn, user_id))

    assert found is not None
    assert found.fingerprint is None
    assert found.session.fingerprint_id is None


def test_session_lasts_thirty_days_by_default(conn: psycopg.Connection, user_id: UUID):
    default = create_session(conn, user_id=user_id).session
    short = create_session(conn, user_id=user_id, ttl=DAY).session

    assert default.expires_at - default.created_at == 30 * DAY
    assert short.expires_at - short.created_at == DAY


def test_token_is_32_random_bytes_and_only_its_hash_is_stored(
    conn: psycopg.Connection, user_id: UUID
):
    tokens = [sign_in(conn, user_id) for _ in range(20)]

    assert len(set(tokens)) == 20
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", token) for token in tokens)
    stored = {row[0] for row in conn.execute("SELECT token_hash FROM app.sessions")}
    assert stored == {hashlib.sha256(token.encode()).digest() for token in tokens}
    new = create_session(conn, user_id=user_id)
    assert new.token not in repr(new)


@pytest.mark.parametrize("token", ["", "x", "a" * 43, "\0", "\ud800", "ä", "x" * 10**6])
def test_unknown_token_finds_nothing(
    conn: psycopg.Connection, user_id: UUID, token: str
):
    create_session(conn, user_id=user_id)

    assert find_session(conn, token=token) is None
    assert extend_session(conn, token=token) is None
    assert delete_session(conn, token=token) is False


def test_every_token_costs_one_query(database: str, monkeypatch: pytest.MonkeyPatch):
    """The time of an answer must not tell an invalid token from an unknown one."""
    with connect(database) as conn:
        token = sign_in(conn, add_user(conn))
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


def test_session_is_invalid_from_its_expiry_on(conn: psycopg.Connection, user_id: UUID):
    new = create_session(conn, user_id=user_id)
    end = new.session.expires_at

    assert find_session(conn, token=new.token, at=end - MICROSECOND) is not None
    assert find_session(conn, token=new.token, at=end) is None


def test_session_expires_within_a_transaction(conn: psycopg.Connection, user_id: UUID):
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


def test_session_of_an_anonymized_user_finds_nothing(
    conn: psycopg.Connection, user_id: UUID
):
    """Restoring a backup of sessions can leave such a session."""
    token = sign_in(conn, user_id)
    conn.execute("UPDATE app.users SET email = NULL, anonymized_at = now()")

    assert not is_valid(conn, token)


def test_unknown_user_or_fingerprint_gets_no_session(
    conn: psycopg.Connection, user_id: UUID
):
    with pytest.raises(UserNotFoundError):
        create_session(conn, user_id=uuid4())
    with pytest.raises(FingerprintNotFoundError):
        create_session(conn, user_id=user_id, fingerprint_id=uuid4())

    assert count_sessions(conn) == 0


@pytest.mark.parametrize("ttl", [timedelta(0), -MICROSECOND, -DAY])
def test_ttl_is_above_zero(conn: psycopg.Connection, user_id: UUID, ttl: timedelta):
    rule = "sessions_expires_after_created_check"
    with pytest.raises(RuleError, match=rule) as refusal:
        create_session(conn, user_id=user_id, ttl=ttl)

    assert str(refusal.value).startswith("give a ttl above 0 (")
    assert count_sessions(conn) == 0


def test_sign_out_ends_one_session(conn: psycopg.Connection, user_id: UUID):
    one, other = (sign_in(conn, user_id) for _ in range(2))

    assert delete_session(conn, token=one) is True
    assert delete_session(conn, token=one) is False
    assert not is_valid(conn, one)
    assert is_valid(conn, other)


def test_sign_out_everywhere_ends_the_sessions_of_one_user(
    conn: psycopg.Connection, user_id: UUID
):
    for _ in range(3):
        create_session(conn, user_id=user_id)
    other = sign_in(conn, add_user(conn))

    assert delete_user_sessions(conn, user_id=user_id) == 3
    assert is_valid(conn, other)


def test_expired_sessions_are_deleted_oldest_first(
    conn: psycopg.Connection, user_id: UUID
):
    add_sessions(conn, user_id, [-n * DAY for n in range(5)] + [DAY])

    counts = [delete_expired_sessions(conn, limit=2)]
    left = conn.execute("SELECT min(expires_at) - now() FROM app.sessions").fetchone()
    counts += [delete_expired_sessions(conn, limit=2) for _ in range(3)]

    assert counts == [2, 2, 1, 0]
    assert left == (-2 * DAY,)
    assert count_sessions(conn) == 1


def test_deletions_of_expired_sessions_do_not_wait_for_each_other(pair: Pair):
    conn, other = pair
    user = add_user(conn)
    add_sessions(conn, user, [-n * DAY for n in range(1, 7)])
    conn.commit()
    other.execute("SET lock_timeout = '1s'")

    assert delete_expired_sessions(conn, limit=4) == 4
    assert delete_expired_sessions(other, limit=4) == 2
    other.rollback()
    assert delete_user_sessions(conn, user_id=user) == 2
    assert delete_expired_sessions(other, limit=4) == 0


def test_expiry_is_the_same_instant_in_every_time_zone(database: str):
    at = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    with psycopg.connect(database) as conn:
        token = sign_in(conn, add_user(conn))
        conn.execute("UPDATE app.sessions SET created_at = '2020-01-01+00'")
        conn.execute("UPDATE app.sessions SET expires_at = %s", [at])
        for zone in ("UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Apia"):
            conn.execute(f"SET TimeZone = '{zone}'".encode())

            found = find_session(conn, token=token, at=at - MICROSECOND)

            assert found is not None
            assert found.session.expires_at == at
            assert find_session(conn, token=token, at=at) is None


class TestFirstVerification:
    """The first verification of an address ends all earlier sessions of the user."""

    @pytest.mark.parametrize("way", [verify, verify_by_sql])
    def test_it_ends_the_sessions_of_one_user(
        self, conn: psycopg.Connection, user_id: UUID, way
    ):
        tokens = [sign_in(conn, user_id) for _ in range(3)]
        other = sign_in(conn, add_user(conn))

        way(conn, user_id)

        assert not any(is_valid(conn, token) for token in tokens)
        assert is_valid(conn, other)

    def test_a_second_one_ends_nothing(self, conn: psycopg.Connection, user_id: UUID):
        verify(conn, user_id)
        token = sign_in(conn, user_id)

        verify(conn, user_id)
        verify_by_sql(conn, user_id)
        set_user_email(conn, user_id=user_id, email=EMAIL.upper())
        verify(conn, user_id)

        assert is_valid(conn, token)

    def test_an_abandoned_address_ends_nothing(
        self, conn: psycopg.Connection, user_id: UUID
    ):
        set_user_email(conn, user_id=user_id, email=OTHER)
        token = sign_in(conn, user_id)

        with pytest.raises(UserNotFoundError):
            verify(conn, user_id)

        assert is_valid(conn, token)

    def test_each_new_address_has_one(self, conn: psycopg.Connection, user_id: UUID):
        verify(conn, user_id)
        first = sign_in(conn, user_id)

        set_user_email(conn, user_id=user_id, email=OTHER)
        assert is_valid(conn, first)
        mark_user_email_verified(conn, user_id=user_id, email=OTHER)
        assert not is_valid(conn, first)

        second = sign_in(conn, user_id)
        set_user_email(conn, user_id=user_id, email=EMAIL)
        verify(conn, user_id)
        assert not is_valid(conn, second)

    def test_a_new_address_that_is_set_as_verified_has_one(
        self, conn: psycopg.Connection, user_id: UUID
    ):
        verify(conn, user_id)
        token = sign_in(conn, user_id)

        conn.execute(
            "UPDATE app.users SET email = %s, email_verified_at = now() WHERE id = %s",
            [OTHER, user_id],
        )

        assert not is_valid(conn, token)

    @pytest.mark.parametrize("way", [verify, verify_by_sql])
    def test_it_ends_an_uncommitted_session(self, pair: Pair, way):
        conn, verifier = pair
        user = add_user(conn, email=EMAIL)
        conn.commit()
        sign_in(conn, user)

        run_blocked(conn, verifier, way, user_id=user)

        assert count_sessions(conn) == 0

    def test_a_sign_in_waits_for_it_and_counts_as_later(self, pair: Pair):
        conn, verifier = pair
        user = add_user(conn, email=EMAIL)
        conn.commit()
        verify(verifier, user)

        token = run_blocked(verifier, conn, sign_in, user_id=user)

        assert is_valid(conn, token)
        assert get_user(conn, user_id=user).email_verified_at is not None

    def test_the_later_of_two_concurrent_ones_ends_nothing(self, pair: Pair):
        conn, other = pair
        user = add_user(conn, email=EMAIL)
        conn.commit()
        verify(conn, user)
        token = sign_in(conn, user)

        run_blocked(conn, other, verify, user_id=user)

        assert is_valid(conn, token)

    def test_it_does_not_deadlock_with_a_sign_in_that_changes_the_user(
        self, pair: Pair
    ):
        conn, verifier = pair
        user = add_user(conn, email=EMAIL)
        conn.commit()
        token = sign_in(conn, user)

        def rename_and_commit() -> None:
            set_user_profile(conn, user_id=user, name="Ada", image_url=None)
            conn.commit()

        run_blocked(conn, verifier, verify, release=rename_and_commit, user_id=user)

        assert not is_valid(conn, token)
        assert get_user(conn, user_id=user).name == "Ada"

    @pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
    def test_an_isolation_level_that_could_miss_a_session_is_refused(
        self, database: str, level: str
    ):
        with connect(database) as conn:
            user = add_user(conn, email=EMAIL)
            conn.commit()
            conn.execute(f"SET TRANSACTION ISOLATION LEVEL {level}".encode())

            with pytest.raises(
                psycopg.errors.InvalidTransactionState, match="needs READ COMMITTED"
            ):
                verify(conn, user)
            conn.rollback()

            assert get_user(conn, user_id=user).email_verified_at is None
