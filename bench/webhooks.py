"""Webhooks, verified and applied, against INSERT event and UPDATE user.

The events are changes of subscriptions as the fake Stripe renders them, signed, each
newer than the one before. Processes and connections are warm when a measurement begins,
as those of a server are.
"""

import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any

import psycopg

from bench.contest import median_ratio
from bench.engines import TARGETS, Engine
from bench.load import query
from bench.measures import Measure, at_least
from pyapp._core.connection import connect
from pyapp.plans import add_plan_price, create_plan
from pyapp.stripe_sync import handle_webhook
from tests.fake_stripe import TEST_SECRET, sign
from tests.fake_stripe.clock import Clock
from tests.fake_stripe.seed import seed_accounts
from tests.fake_stripe.world import World
from tests.stripe_world import START, make_customer, make_event

CUSTOMERS = 400
ROUNDS = 5
# Events of each process that are not measured: statements are planned in them.
WARM_UP = 50
TARGET = 0.7
Worker = Callable[[psycopg.Connection[Any], Sequence[bytes], Sequence[str]], None]
Share = Callable[[Sequence[bytes], int], float]


def measure_webhooks(
    url: str, events: int, engines: Sequence[Engine] = ()
) -> Iterator[Measure]:
    """Apply *events* subscription changes by 1 worker and by 8 processes.

    A line compares each contestant with ours in the same rounds, in which all of them
    take turns. The plain design has its own events, the engines have ours.
    """
    customers = make_customers(url)
    contestants: dict[str, Share] = {"plain": partial(_share, url, _write)}
    for engine in engines:
        contestants[engine.name] = partial(engine.share, warm_up=WARM_UP)
    targets = {"plain": TARGET, **TARGETS}
    moment = START
    for workers in (1, 8):
        passes = (events + workers * WARM_UP) // CUSTOMERS + 1
        rates: dict[str, list[float]] = {name: [] for name in ("ours", *contestants)}
        for _ in range(ROUNDS):
            bodies = make_changes(customers, moment, passes)
            others = make_changes(customers, moment, passes)
            moment += passes
            number = len(bodies) - workers * WARM_UP
            rates["ours"].append(number / _share(url, apply, bodies, workers))
            for name, share in contestants.items():
                given = others if name == "plain" else bodies
                rates[name].append(number / share(given, workers))
        for engine in engines:
            assert engine.count(_status(moment - 1)) == CUSTOMERS, engine
        medians = {name: statistics.median(found) for name, found in rates.items()}
        for name in contestants:
            yield at_least(
                f"a webhook, {workers} worker{'s' if workers > 1 else ''}",
                f"{medians['ours']:,.0f} /s",
                f"{name} {medians[name]:,.0f} /s",
                median_ratio(rates["ours"], rates[name]),
                targets[name],
                rates,
            )


def make_customers(url: str) -> dict[str, dict[str, Any]]:
    """Create linked customers by webhooks; return their subscriptions by their ids."""
    world = World(Clock(START), "2026-10-28.endive", seed=1)
    seed_accounts(world, 1)
    (subscription,) = world.live_subscriptions("cus_Seed0000000000")
    customers = {}
    with connect(url) as conn:
        conn.autocommit = True
        create_plan(conn, plan_id="bench", monthly_credits=Decimal(500))
        price = subscription.items[0].price.id
        add_plan_price(conn, plan_id="bench", stripe_price_id=price)
        rows = conn.execute(query("insert_stripe_users").sql, {"users": CUSTOMERS})
        for number, (user_id,) in enumerate(rows.fetchall()):
            subscription.id, subscription.customer = f"sub_{number}", f"cus_{number}"
            subscription.items[0].id = f"si_{number}"
            shape = customers[subscription.customer] = world.render(subscription)
            customer = make_customer(subscription.customer, user_id)
            bodies = [
                make_event("customer.created", customer, START - 1),
                make_event("customer.subscription.created", shape, START - 1),
            ]
            apply(conn, bodies, [sign(body, [TEST_SECRET]) for body in bodies])
    return customers


def make_changes(
    customers: dict[str, dict[str, Any]], moment: int, passes: int
) -> list[bytes]:
    """Return a change of each subscription for each of *passes* seconds."""
    return [
        make_event(
            "customer.subscription.updated",
            shape,
            second,
            data={
                "object": shape | {"status": _status(second)},
                "previous_attributes": {"status": _status(second - 1)},
            },
            pending_webhooks=1,
            request={"id": None, "idempotency_key": None},
        )
        for second in range(moment, moment + passes)
        for shape in customers.values()
    ]


def _status(second: int) -> str:
    return "active" if second % 2 else "past_due"


def apply(
    conn: psycopg.Connection[Any], bodies: Sequence[bytes], signatures: Sequence[str]
) -> None:
    """Verify and apply each delivery."""
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


def _share(url: str, worker: Worker, bodies: Sequence[bytes], workers: int) -> float:
    """Return the seconds in which *workers* processes handle all *bodies*.

    The first WARM_UP of each process are not measured.
    """
    context = multiprocessing.get_context("fork")
    ready, done = context.Barrier(workers + 1), context.Barrier(workers + 1)
    processes = [
        context.Process(
            target=_work,
            # By customer: concurrent deliveries for one customer are rare.
            args=(url, worker, bodies[number::workers], ready, done),
        )
        for number in range(workers)
    ]
    for process in processes:
        process.start()
    ready.wait()
    began = time.perf_counter()
    done.wait()
    seconds = time.perf_counter() - began
    for process in processes:
        process.join()
    return seconds


def _work(
    url: str, worker: Worker, bodies: Sequence[bytes], ready: Any, done: Any
) -> None:
    signatures = [sign(body, [TEST_SECRET]) for body in bodies]
    try:
        with connect(url) as conn:
            conn.autocommit = True
            worker(conn, bodies[:WARM_UP], signatures[:WARM_UP])
            ready.wait()
            worker(conn, bodies[WARM_UP:], signatures[WARM_UP:])
            done.wait()
    except BaseException:
        # All others would wait for this process.
        ready.abort()
        done.abort()
        raise
