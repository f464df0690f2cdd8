"""Overhead of the Python layer: each function against its SQL by bare psycopg.

`python -m bench.functions` prints the table; ratios are valid within one run. Each
call is measured as the first of its transaction and inside an open one, where a call
that a rule may refuse takes a savepoint. Bare psycopg gets prepared parameters and
returns tuples; its savepoint is `conn.transaction()`.
"""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import psycopg
from rich.console import Console
from rich.table import Table

import pyapp
from pyapp._core import run
from pyapp._core.connection import connect
from pyapp._core.queries import QUERIES, schema_text
from tests.temp_server import temp_server

Function = Callable[..., Any]
ROUNDS = 300


@dataclass(frozen=True)
class Case:
    """One call of a function."""

    function: Function
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Figures:
    """Median microseconds of one case, first in its transaction and inside one."""

    name: str
    has_savepoint: bool
    bare_first: float
    first: float
    bare_inside: float
    in_savepoint: float
    inside: float


def sent_by(
    conn: psycopg.Connection[Any], case: Case
) -> tuple[str, Mapping[str, Any], bool]:
    """Return the statement of the call, its parameters, and if it has a savepoint."""
    with (
        patch.object(run, "_run", wraps=run._run) as runner,
        patch.object(conn, "transaction", wraps=conn.transaction) as savepoint,
    ):
        pyapp.plans.list_plans(conn)
        case.function(conn, **case.arguments)
    conn.rollback()
    _, _, query, parameters = runner.call_args.args
    return QUERIES[query].sql, parameters, savepoint.called


def measure(conn: psycopg.Connection[Any], case: Case, rounds: int) -> Figures:
    """Run all contestants in turn; each call is rolled back before the next."""
    sql, parameters, has_savepoint = sent_by(conn, case)

    def bare() -> None:
        cursor = conn.execute(sql, parameters)
        if cursor.description:
            cursor.fetchall()

    def in_savepoint() -> None:
        with conn.transaction():
            bare()

    def function() -> None:
        case.function(conn, **case.arguments)

    contestants: list[tuple[bool, Callable[[], None]]] = [
        (False, bare), (False, function),
        (True, bare), (True, in_savepoint), (True, function),
    ]  # fmt: skip
    samples: list[list[float]] = [[] for _ in contestants]
    for _ in range(rounds):
        for (is_inside, contestant), seconds in zip(contestants, samples, strict=True):
            if is_inside:
                pyapp.plans.list_plans(conn)
            began = time.perf_counter()
            contestant()
            seconds.append(time.perf_counter() - began)
            conn.rollback()
    medians = [statistics.median(seconds) * 1e6 for seconds in samples]
    return Figures(case.function.__name__, has_savepoint, *medians)


def list_cases(conn: psycopg.Connection[Any]) -> list[Case]:
    """Create the rows that the cases need, and return the cases."""
    user, friend, other = (
        pyapp.users.create_user(conn, email=f"{name}@example.com")
        for name in ("ada", "bob", "carl")
    )
    device = pyapp.fingerprints.upsert_fingerprint(conn)
    token = pyapp.sessions.create_session(
        conn, user_id=user.id, fingerprint_id=device.id
    ).token
    usage: dict[str, Any] = {
        "user_id": user.id,
        "model": "claude-sonnet-4-5",
        "cost": Decimal("0.01"),
        "client_id": "run",
        "client_request_id": "request",
    }
    now = datetime.now(UTC)
    for n in range(300):
        pyapp.messages.record_message(
            conn, **usage, finished_at=now - timedelta(hours=3 * n)
        )
    kept = pyapp.messages.record_message(conn, **usage, request=["hello"])
    pending = pyapp.referrals.create_referral(
        conn, referral_code=user.referral_code, referred_id=other.id
    )
    pyapp.plans.add_plan_price(conn, plan_id="paid", stripe_price_id="price_2")
    by_user, message = {"user_id": user.id}, {"subject_id": user.id}
    one = {**message, "message_id": kept.id}
    month_ago = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(30)
    code = {"referral_code": user.referral_code, "referred_id": friend.id}
    email = {"email": "new@example.com"}
    p = pyapp
    return [
        Case(p.users.create_user, {**email, "name": "New"}),
        Case(p.users.create_user, {"email": "j\xfcrgen@example.com"}),
        Case(p.users.get_user, by_user),
        Case(p.users.find_user_by_email, {"email": "ADA@example.com"}),
        Case(p.users.list_users, {}),
        Case(p.users.set_user_profile, {**by_user, "name": "A", "image_url": None}),
        Case(p.users.set_user_email, {**by_user, **email}),
        Case(p.users.mark_user_email_verified, {**by_user, "email": user.email}),
        Case(p.fingerprints.upsert_fingerprint, {"fingerprint_id": device.id}),
        Case(p.fingerprints.get_fingerprint, {"fingerprint_id": device.id}),
        Case(p.sessions.create_session, by_user),
        Case(p.sessions.create_session, {**by_user, "fingerprint_id": device.id}),
        Case(p.sessions.find_session, {"token": token}),
        Case(p.sessions.extend_session, {"token": token}),
        Case(p.sessions.delete_session, {"token": token}),
        Case(p.sessions.delete_user_sessions, by_user),
        Case(p.sessions.delete_expired_sessions, {}),
        Case(p.messages.record_message, {**usage, "id": uuid4()}),
        Case(p.messages.record_message, {**usage, "id": uuid4(), "request": ["hi"]}),
        Case(p.messages.get_message, one),
        Case(p.messages.find_message_payload, one),
        Case(p.messages.list_messages, message),
        Case(p.usage.get_request_usage, {"client_request_id": "request"}),
        Case(p.usage.get_client_usage, {"client_id": "run"}),
        Case(p.usage.list_usage, {**message, "by": "day", "since": month_ago}),
        Case(p.quota.get_user_quota, by_user),
        Case(p.quota.get_fingerprint_quota, {"fingerprint_id": device.id}),
        Case(p.quota.list_user_quotas, {}),
        Case(p.quota.list_fingerprint_quotas, {}),
        Case(p.entitlements.get_entitlement, by_user),
        Case(p.entitlements.list_entitlements, {}),
        Case(p.referrals.redeem_referral, code),
        Case(p.referrals.create_referral, code),
        Case(p.referrals.complete_referral, {"referred_id": pending.referred_id}),
        Case(p.referrals.get_referral_summary, by_user),
        Case(p.referrals.list_referrals, by_user),
        Case(p.plans.list_plans, {}),
        Case(p.plans.get_plan, {"plan_id": "free"}),
        Case(p.plans.create_plan, {"plan_id": "team", "monthly_credits": Decimal(9)}),
        Case(
            p.plans.set_plan_credits, {"plan_id": "paid", "monthly_credits": Decimal(9)}
        ),
        Case(p.plans.add_plan_price, {"plan_id": "paid", "stripe_price_id": "price_1"}),
        Case(p.plans.remove_plan_price, {"stripe_price_id": "price_2"}),
    ]


def measure_functions(url: str, rounds: int = ROUNDS) -> Iterator[Figures]:
    """Measure every case on a database that has the schema."""
    with connect(url) as conn:
        cases = list_cases(conn)
        conn.commit()
        gc.disable()
        try:
            for case in cases:
                yield measure(conn, case, rounds)
        finally:
            gc.enable()


def main() -> int:
    """Measure and print the table."""
    table = Table(box=None, pad_edge=False, title="microseconds, medians")
    for column in (
        "function", "bare", "function", "ratio",
        "bare, inside", "own savepoint", "function", "ratio",
    ):  # fmt: skip
        table.add_column(column, justify="left" if not table.columns else "right")
    with temp_server() as server:
        with psycopg.connect(server.url, autocommit=True) as conn:
            conn.execute(schema_text().encode())
        found = list(measure_functions(server.url))
    for figures in found:
        floor = figures.in_savepoint if figures.has_savepoint else figures.bare_inside
        table.add_row(
            f"{figures.name}{' (savepoint)' if figures.has_savepoint else ''}",
            f"{figures.bare_first:.0f}",
            f"{figures.first:.0f}",
            f"{figures.first / figures.bare_first:.2f}x",
            f"{figures.bare_inside:.0f}",
            f"{figures.in_savepoint:.0f}" if figures.has_savepoint else "",
            f"{figures.inside:.0f}",
            f"{figures.inside / floor:.2f}x",
        )
    Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
