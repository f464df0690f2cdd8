"""The first proof of an e-mail address ends the sessions from before it."""

from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import psycopg
import pytest

from pyapp._core.connection import connect
from pyapp.errors import UserNotFoundError
from pyapp.sessions import create_session, find_session
from pyapp.users import (
    create_user,
    get_user,
    mark_user_email_verified,
    set_user_email,
    set_user_profile,
)
from tests.metering import add_user
from tests.waiting import wait_for_lock

EMAIL = "Ada@Example.com"
OTHER = "ada@example.org"


@pytest.fixture
def user_id(conn: psycopg.Connection) -> UUID:
    return create_user(conn, email=EMAIL).id


def sign_in(conn: psycopg.Connection, user_id: UUID) -> str:
    return create_session(conn, user_id=user_id).token


def is_valid(conn: psycopg.Connection, token: str) -> bool:
    return find_session(conn, token=token) is not None


def prove(conn: psycopg.Connection, user_id: UUID) -> None:
    mark_user_email_verified(conn, user_id=user_id, email=EMAIL)


def prove_by_hand(conn: psycopg.Connection, user_id: UUID) -> None:
    conn.execute(
        "UPDATE app.users SET email_verified_at = now() WHERE id = %s", [user_id]
    )


def test_first_proof_ends_the_sessions_of_that_user_only(
    conn: psycopg.Connection, user_id: UUID
):
    tokens = [sign_in(conn, user_id) for _ in range(3)]
    other = sign_in(conn, add_user(conn))

    prove(conn, user_id)

    assert not any(is_valid(conn, token) for token in tokens)
    assert is_valid(conn, other)


def test_first_proof_by_plain_sql_ends_sessions(
    conn: psycopg.Connection, user_id: UUID
):
    token = sign_in(conn, user_id)

    prove_by_hand(conn, user_id)

    assert not is_valid(conn, token)


def test_second_proof_ends_nothing(conn: psycopg.Connection, user_id: UUID):
    prove(conn, user_id)
    token = sign_in(conn, user_id)

    prove(conn, user_id)
    prove_by_hand(conn, user_id)

    assert is_valid(conn, token)


def test_proof_of_an_address_given_up_ends_nothing(
    conn: psycopg.Connection, user_id: UUID
):
    set_user_email(conn, user_id=user_id, email=OTHER)
    token = sign_in(conn, user_id)

    with pytest.raises(UserNotFoundError):
        prove(conn, user_id)

    assert is_valid(conn, token)


def test_each_new_address_has_a_first_proof(conn: psycopg.Connection, user_id: UUID):
    prove(conn, user_id)
    first = sign_in(conn, user_id)

    set_user_email(conn, user_id=user_id, email=OTHER)
    assert is_valid(conn, first)
    mark_user_email_verified(conn, user_id=user_id, email=OTHER)
    assert not is_valid(conn, first)

    second = sign_in(conn, user_id)
    set_user_email(conn, user_id=user_id, email=EMAIL)
    prove(conn, user_id)
    assert not is_valid(conn, second)


def test_address_in_another_case_is_the_same(conn: psycopg.Connection, user_id: UUID):
    prove(conn, user_id)
    token = sign_in(conn, user_id)

    set_user_email(conn, user_id=user_id, email=EMAIL.upper())
    prove(conn, user_id)

    assert is_valid(conn, token)


def test_new_address_that_comes_proved_ends_sessions(
    conn: psycopg.Connection, user_id: UUID
):
    prove(conn, user_id)
    token = sign_in(conn, user_id)

    conn.execute(
        "UPDATE app.users SET email = %s, email_verified_at = now() WHERE id = %s",
        [OTHER, user_id],
    )

    assert not is_valid(conn, token)


@pytest.mark.parametrize("way", [prove, prove_by_hand])
def test_session_that_is_being_created_ends_too(database: str, way):
    with connect(database) as conn, connect(database) as prover:
        user = create_user(conn, email=EMAIL).id
        conn.commit()
        token = sign_in(conn, user)

        with ThreadPoolExecutor() as threads:
            proving = threads.submit(way, prover, user)
            wait_for_lock(conn, prover)
            conn.commit()
            proving.result()
        prover.commit()

        assert not is_valid(conn, token)
        assert conn.execute("SELECT count(*) FROM app.sessions").fetchone() == (0,)


def test_sign_in_waits_for_the_proof_and_counts_as_later(database: str):
    with connect(database) as conn, connect(database) as prover:
        user = create_user(conn, email=EMAIL).id
        conn.commit()
        prove(prover, user)

        with ThreadPoolExecutor() as threads:
            signing_in = threads.submit(sign_in, conn, user)
            wait_for_lock(prover, conn)
            prover.commit()
            token = signing_in.result()

        assert is_valid(conn, token)
        assert get_user(conn, user_id=user).email_verified_at is not None


def test_later_of_two_proofs_at_once_ends_nothing(database: str):
    with connect(database) as conn, connect(database) as other:
        user = create_user(conn, email=EMAIL).id
        conn.commit()
        prove(conn, user)
        token = sign_in(conn, user)

        with ThreadPoolExecutor() as threads:
            proving = threads.submit(prove, other, user)
            wait_for_lock(conn, other)
            conn.commit()
            proving.result()
        other.commit()

        assert is_valid(conn, token)


def test_proof_does_not_deadlock_with_a_sign_in_that_goes_on(database: str):
    with connect(database) as conn, connect(database) as prover:
        user = create_user(conn, email=EMAIL).id
        conn.commit()
        token = sign_in(conn, user)

        with ThreadPoolExecutor() as threads:
            proving = threads.submit(prove, prover, user)
            wait_for_lock(conn, prover)
            set_user_profile(conn, user_id=user, name="Ada", image_url=None)
            conn.commit()
            proving.result()
        prover.commit()

        assert not is_valid(conn, token)
        assert get_user(conn, user_id=user).name == "Ada"


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_first_proof_is_refused_where_it_could_miss_a_session(
    database: str, level: str
):
    with connect(database) as conn:
        user = create_user(conn, email=EMAIL).id
        conn.commit()
        conn.execute(f"SET TRANSACTION ISOLATION LEVEL {level}".encode())

        with pytest.raises(
            psycopg.errors.InvalidTransactionState, match="needs READ COMMITTED"
        ):
            prove(conn, user)
        conn.rollback()

        assert get_user(conn, user_id=user).email_verified_at is None
