"""Webhooks, verified and applied, against INSERT event and UPDATE user."""

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import psycopg

from bench.load import query
from bench.measures import Measure, at_least
from pyapp._core.connection import connect
from pyapp.stripe_sync import handle_webhook
from tests.fake_stripe import TEST_SECRET, sign
from tests.stripe_world import (
    START,
    make_customer,
    make_event,
    make_subscription,
)

CUSTOMERS = 400
ROUNDS = 3
Worker = Callable[[psycopg.Connection[Any], Sequence[bytes], Sequence[str]], None]


def measure_webhooks(url: str, events: int) -> Iterator[Measure]:
    """Apply *events* subscription changes by 1 worker and by 8 processes."""
    customers = _make_customers(url)
    moment = START
    for workers in (1, 8):
        rates: dict[str, list[float]] = {"applied": [], "plain": []}
        for _ in range(ROUNDS):
            for name, worker in (("applied", _apply), ("plain", _write)):
                moment += events // CUSTOMERS + 1
                bodies = [
                    _make_change(customers[n % CUSTOMERS], moment + n // CUSTOMERS)
                    for n in range(events)
                ]
                rates[name].append(events / _share(url, worker, bodies, workers))
        applied, plain = (sorted(rates[name])[ROUNDS // 2] for name in rates)
        yield at_least(
            f"a webhook, {workers} worker{'s' if workers > 1 else ''}",
            f"{applied:,.0f} /s",
            f"plain {plain:,.0f} /s",
            applied / plain,
            0.7,
            {"applied": applied, "plain": plain},
        )


def _make_customers(url: str) -> list[str]:
    """Create linked customers with a subscription each, by webhooks."""
    with connect(url) as conn:
        conn.autocommit = True
        rows = conn.execute(query("insert_stripe_users").sql, {"users": CUSTOMERS})
        customers = []
        for number, (user_id,) in enumerate(rows.fetchall()):
            customer = f"cus_bench{number}"
            customers.append(customer)
            shape = make_customer(customer, user_id)
            bodies = [
                make_event("customer.created", shape, START),
                _make_change(customer, START, "customer.subscription.created"),
            ]
            _apply(conn, bodies, [sign(body, [TEST_SECRET]) for body in bodies])
    return customers


def _make_change(
    customer: str, moment: int, kind: str = "customer.subscription.updated"
) -> bytes:
    status = "active" if moment % 2 else "past_due"
    subscription = customer.replace("cus_", "sub_")
    return make_event(
        kind, make_subscription(subscription, customer, status=status), moment
    )


def _apply(
    conn: psycopg.Connection[Any], bodies: Sequence[bytes], signatures: Sequence[str]
) -> None:
    for body, signature in zip(bodies, signatures, strict=True):
        outcome = handle_webhook(conn, body, signature, [TEST_SECRET])
        assert outcome.result == "applied", outcome


def _write(
    conn: psycopg.Connection[Any], bodies: Sequence[bytes], signatures: Sequence[str]
) -> None:
    """The plain design: it trusts every event in any order."""
    event_sql, user_sql = (
        query(name).sql for name in ("insert_event_plain", "update_user_plain")
    )
    for body in bodies:
        event = json.loads(body)
        subscription = event["data"]["object"]
        with conn.transaction():
            conn.execute(
                event_sql,
                {
                    "id": event["id"],
                    "type": event["type"],
                    "api_version": event["api_version"],
                    "event_created_at": datetime.fromtimestamp(event["created"], UTC),
                    "payload": body.decode(),
                },
            )
            conn.execute(
                user_sql,
                {
                    "status": subscription["status"],
                    "price_id": subscription["items"]["data"][0]["price"]["id"],
                    "customer_id": subscription["customer"],
                },
            )


def _share(url: str, worker: Worker, bodies: list[bytes], workers: int) -> float:
    """Return the seconds in which *workers* processes handle all *bodies*."""
    context = multiprocessing.get_context("fork")
    start = context.Barrier(workers + 1)
    processes = [
        context.Process(
            target=_work,
            # By customer: concurrent deliveries for one customer are rare.
            args=(url, worker, bodies[number::workers], start),
        )
        for number in range(workers)
    ]
    for process in processes:
        process.start()
    start.wait()
    began = time.perf_counter()
    for process in processes:
        process.join()
        assert process.exitcode == 0, "a worker failed"
    return time.perf_counter() - began


def _work(url: str, worker: Worker, bodies: list[bytes], start: Any) -> None:
    signatures = [sign(body, [TEST_SECRET]) for body in bodies]
    with connect(url) as conn:
        conn.autocommit = True
        start.wait()
        worker(conn, bodies, signatures)
