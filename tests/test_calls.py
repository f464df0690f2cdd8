"""Calls leave the caller's transaction to the caller, on any kind of connection."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row, namedtuple_row, scalar_row, tuple_row

from pyapp._core.connection import connect
from pyapp.errors import EmailTakenError, PlanExistsError, PyappError, RuleError
from pyapp.plans import add_plan_price, create_plan, get_plan, list_plans
from pyapp.quota import get_user_quota
from pyapp.sessions import create_session, delete_user_sessions, find_session
from pyapp.users import (
    User,
    anonymize_user,
    create_user,
    find_user_by_email,
    get_user,
    list_users,
)

Connection = psycopg.Connection[Any]
Write = Callable[[Connection, User], object]
# A call in a savepoint, a function of several statements, and a plain call; each with
# a function that reads whether it took effect.
WRITES: dict[str, tuple[Write, Callable[[Connection, User], bool]]] = {
    "savepoint": (
        lambda conn, _: add_plan(conn, "team"),
        lambda conn, _: "team" in plan_ids(conn),
    ),
    "several": (
        lambda conn, user: anonymize_user(conn, user_id=user.id),
        lambda conn, user: get_user(conn, user_id=user.id).email is None,
    ),
    "plain": (
        lambda conn, user: create_session(conn, user_id=user.id),
        lambda conn, user: delete_user_sessions(conn, user_id=user.id) == 1,
    ),
}
every_write = pytest.mark.parametrize(
    ("write", "took_effect"), WRITES.values(), ids=WRITES
)


def add_plan(conn: psycopg.Connection[Any], plan_id: str) -> None:
    create_plan(conn, plan_id=plan_id, monthly_credits=Decimal(9))


def plan_ids(conn: psycopg.Connection[Any]) -> list[str]:
    return [plan.id for plan in list_plans(conn)]


def refuse(conn: psycopg.Connection[Any]) -> RuleError:
    """Make a call that a rule refuses."""
    with pytest.raises(PlanExistsError) as refusal:
        add_plan(conn, "free")
    return refusal.value


def status(conn: psycopg.Connection[Any]) -> TransactionStatus:
    return conn.info.transaction_status


@every_write
def test_calls_do_not_commit(database: str, write, took_effect):
    with connect(database) as conn, connect(database) as other:
        user = create_user(conn, email="ada@example.com")
        conn.commit()

        write(conn, user)

        assert status(conn) == TransactionStatus.INTRANS
        assert not took_effect(other, user)
        conn.rollback()
        assert not took_effect(conn, user)


@every_write
def test_autocommit_commits_each_call(database: str, write, took_effect):
    with psycopg.connect(database, autocommit=True) as conn:
        user = create_user(conn, email="ada@example.com")

        write(conn, user)

        assert status(conn) == TransactionStatus.IDLE
        with connect(database) as other:
            assert took_effect(other, user)


def test_refusal_keeps_earlier_changes_of_the_transaction(
    conn: psycopg.Connection[Any],
):
    user = create_user(conn, email="ada@example.com")

    for _ in range(10):
        assert refuse(conn).constraint == "plans_pkey"
        assert status(conn) == TransactionStatus.INTRANS

    assert get_user(conn, user_id=user.id) == user


def test_refusal_of_the_first_call_leaves_no_transaction(database: str):
    with connect(database) as conn:
        refuse(conn)

        assert status(conn) == TransactionStatus.IDLE


def test_refusal_under_autocommit_leaves_no_transaction(database: str):
    with psycopg.connect(database, autocommit=True) as conn:
        refuse(conn)

        assert status(conn) == TransactionStatus.IDLE


def test_refusal_within_a_block_leaves_the_block_usable(conn: psycopg.Connection[Any]):
    add_plan(conn, "team")
    with conn.transaction():
        with conn.transaction():
            refuse(conn)
            create_user(conn, email="ada@example.com")
        refuse(conn)

    assert find_user_by_email(conn, email="ada@example.com") is not None


def test_callers_own_savepoint_of_the_same_name_survives(
    conn: psycopg.Connection[Any],
):
    conn.execute("SAVEPOINT pyapp")
    create_user(conn, email="ada@example.com")

    refuse(conn)
    add_plan(conn, "team")
    conn.execute("ROLLBACK TO pyapp")

    assert list_users(conn) == []
    assert "team" not in plan_ids(conn)


def test_failed_erasure_changes_nothing(conn: psycopg.Connection[Any]):
    user = create_user(conn, email="ada@example.com")

    with pytest.raises(PyappError):
        anonymize_user(conn, user_id=uuid4())

    assert status(conn) == TransactionStatus.INTRANS
    assert get_user(conn, user_id=user.id) == user


def test_failed_first_erasure_leaves_no_transaction(database: str):
    with connect(database) as conn:
        with pytest.raises(PyappError):
            anonymize_user(conn, user_id=uuid4())

        assert status(conn) == TransactionStatus.IDLE


def test_other_errors_propagate_and_keep_the_transaction(
    conn: psycopg.Connection[Any],
):
    conn.execute("ALTER TABLE app.plan_prices ADD CHECK (1 / length(plan_id) >= 0)")
    user = create_user(conn, email="ada@example.com")
    with pytest.raises(psycopg.errors.DivisionByZero):
        add_plan_price(conn, plan_id="", stripe_price_id="price_1")

    assert get_user(conn, user_id=user.id) == user


def test_call_in_an_aborted_transaction_raises_psycopgs_error(
    conn: psycopg.Connection[Any],
):
    with pytest.raises(psycopg.errors.DivisionByZero):
        conn.execute("SELECT 1 / 0")

    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        add_plan(conn, "team")
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        get_plan(conn, plan_id="paid")


def test_call_on_a_closed_connection_raises_operational_error(database: str):
    conn = connect(database)
    add_plan(conn, "team")
    conn.close()

    with pytest.raises(psycopg.OperationalError):
        add_plan(conn, "gold")


def test_call_on_a_lost_connection_raises_operational_error(database: str):
    with connect(database) as conn, connect(database) as other:
        add_plan(conn, "team")
        other.execute("SELECT pg_terminate_backend(%s)", [conn.info.backend_pid])

        with pytest.raises(psycopg.OperationalError):
            add_plan(conn, "gold")


@pytest.mark.parametrize(
    "row_factory", [tuple_row, dict_row, namedtuple_row, scalar_row]
)
@pytest.mark.parametrize("is_autocommit", [False, True])
@pytest.mark.parametrize("cursor", [psycopg.Cursor, psycopg.ClientCursor])
def test_calls_work_with_any_row_factory_cursor_and_autocommit(
    shared_database: str, row_factory: Any, is_autocommit: bool, cursor: Any
):
    with psycopg.connect(
        shared_database,
        row_factory=row_factory,
        cursor_factory=cursor,
        autocommit=is_autocommit,
    ) as conn:
        conn.execute("BEGIN" if is_autocommit else "SELECT 1")
        user = create_user(conn, email="ada@example.com")
        new = create_session(conn, user_id=user.id)
        found = find_session(conn, token=new.token)

        assert found is not None
        assert found.user == get_user(conn, user_id=user.id) == user
        with pytest.raises(EmailTakenError):
            create_user(conn, email="ADA@example.com")
        with pytest.raises(RuleError):
            create_user(conn, email="ada")
        assert delete_user_sessions(conn, user_id=user.id) == 1
        assert anonymize_user(conn, user_id=user.id).email is None
        conn.execute("ROLLBACK")


def test_results_are_equal_in_every_time_zone(conn: psycopg.Connection[Any]):
    user = create_user(conn, email="ada@example.com")
    quota = get_user_quota(conn, user_id=user.id)
    for zone in ("Asia/Kathmandu", "America/St_Johns", "UTC"):
        conn.execute(f"SET LOCAL TimeZone = '{zone}'".encode())

        assert get_user(conn, user_id=user.id) == user
        assert get_user_quota(conn, user_id=user.id) == quota


@pytest.mark.parametrize("is_begun", [False, True])
def test_calls_work_in_a_pipeline_of_the_caller(
    shared_database: str, caplog: pytest.LogCaptureFixture, is_begun: bool
):
    with connect(shared_database) as conn, caplog.at_level(logging.WARNING):
        with conn.pipeline(), conn.transaction() if is_begun else nullcontext():
            conn.execute("SELECT 1")
            refuse(conn)
            user = create_user(conn, email="ada@example.com")
            create_session(conn, user_id=user.id)
            assert delete_user_sessions(conn, user_id=user.id) == 1
            refuse(conn)
            assert anonymize_user(conn, user_id=user.id).id == user.id
            if is_begun:
                raise psycopg.Rollback
        conn.rollback()

        assert list_users(conn) == []
    assert caplog.messages == []


def test_refusals_are_not_logged(
    conn: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        for _ in range(20):
            refuse(conn)

    assert caplog.messages == []


def test_call_is_one_round_trip_or_three_with_a_savepoint(
    conn: psycopg.Connection[Any], tmp_path: Path
):
    create_user(conn, email="ada@example.com")
    calls: dict[int, Callable[[], object]] = {
        1: lambda: get_plan(conn, plan_id="free"),
        3: lambda: add_plan(conn, "team"),
    }
    for expected, call in calls.items():
        with (tmp_path / "trace").open("w+") as trace:
            conn.pgconn.trace(trace.fileno())
            call()
            conn.pgconn.untrace()
            answers = Path(trace.name).read_text(encoding="utf-8")

        assert answers.count("ReadyForQuery") == expected
