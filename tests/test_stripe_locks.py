"""What keeps one customer locked holds up that customer's deliveries and no others."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from pyapp._core.connection import connect
from pyapp.stripe_sync import Outcome, handle_webhook
from tests.fake_stripe import TEST_SECRET, sign
from tests.serving import Answer, Served, serving
from tests.stripe_world import (
    START,
    StripeWorld,
    make_customer,
    make_event,
    make_subscription,
)

UPDATED = "customer.subscription.updated"
LOCKED = "cus_locked"
OTHERS = 200


@contextmanager
def held(url: str, statement: str, *parameters: Any) -> Iterator[None]:
    """Do *statement* in a transaction that then stays open and idle."""
    with connect(url) as conn:
        conn.execute(statement.encode(), parameters)
        yield
        conn.rollback()


def send(world: StripeWorld, body: bytes) -> Outcome:
    """Hand over a delivery without the endpoint."""
    signature = sign(body, [TEST_SECRET])
    return handle_webhook(world.conn, body, signature, [TEST_SECRET])


def waiting(conn: psycopg.Connection[Any]) -> int:
    """Return how many backends wait for a lock."""
    row = conn.execute(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ).fetchone()
    assert row is not None
    return int(row[0])


def changes(customer: str, number: int) -> list[bytes]:
    """Return events of one subscription, each later than the one before."""
    return [
        make_event(
            UPDATED,
            make_subscription(customer.replace("cus", "sub"), customer),
            START + moment,
        )
        for moment in range(number)
    ]


async def deliver(
    served: Served, locked: Sequence[bytes], others: Sequence[bytes], rounds: int = 1
) -> tuple[list[Answer], list[Answer], list[Answer]]:
    """Deliver all at the same time; return also what /healthz says during it."""

    async def repeat(body: bytes) -> list[Answer]:
        return [await served.post(body) for _ in range(rounds)]

    async def look() -> list[Answer]:
        answers = []
        for _ in range(10 if locked else 0):
            answers.append(await served.get("/healthz"))
            await asyncio.sleep(0.3)
        return answers

    first = [asyncio.create_task(repeat(body)) for body in locked]
    await asyncio.sleep(1 if locked else 0)
    health = asyncio.create_task(look())
    rest = await asyncio.gather(*(served.post(body) for body in others))
    return (
        [answer for answers in await asyncio.gather(*first) for answer in answers],
        list(rest),
        await health,
    )


LOCKS = {
    "the user's row": "SELECT FROM app.users WHERE stripe_customer_id = %s FOR UPDATE",
    "the customer's lock": "SELECT app.lock_stripe_customer(%s)",
    "the subscription's row": (
        "SELECT FROM app.stripe_subscriptions WHERE customer_id = %s FOR UPDATE"
    ),
}


@pytest.mark.parametrize(
    ("lock", "number", "rounds"),
    [
        ("the user's row", 10, 1),
        ("the user's row", 50, 2),
        ("the customer's lock", 10, 1),
        ("the subscription's row", 50, 1),
    ],
)
def test_locked_customer_holds_up_no_other(
    world: StripeWorld, lock: str, number: int, rounds: int
):
    world.send("customer.created", make_customer(LOCKED, world.user()))
    seen, *locked = changes(LOCKED, number + 1)
    send(world, seen)
    before, others = zip(*(changes(f"cus_{n}", 2) for n in range(OTHERS)), strict=True)
    with serving(world.url) as served:
        # What a busy machine takes for them without any lock.
        _, alone, _ = asyncio.run(deliver(served, [], before))
        with held(world.url, LOCKS[lock], LOCKED):
            answers, rest, health = asyncio.run(deliver(served, locked, others, rounds))
            assert waiting(world.conn) == 0
        statuses = {a.status for a in answers}
        kept = [event for event in world.events() if event[1] == "failed"]
        later = asyncio.run(served.post(locked[-1]))

    slowest = max(1.0, 2 * max(a.seconds for a in alone))
    assert {a.status for a in rest} == {200}
    assert max(a.seconds for a in rest) < slowest
    assert {a.status for a in health} == {200}
    assert max(a.seconds for a in health) < slowest
    assert statuses == {503}
    assert max(a.seconds for a in answers) < 6
    # They are kept, each with why, and are applied when the lock is gone.
    assert len(kept) == number
    assert {str(event[3]).partition(":")[0] for event in kept} == {"LockNotAvailable"}
    assert later.status == 200
    for body in locked:
        name = f"event_id={json.loads(body)['id']} "
        told = [line for line in served.log if name in line and "ERROR" in line]
        assert [line for line in told if "kind=LockNotAvailable attempts=" in line]


def others() -> list[bytes]:
    return [body for n in range(OTHERS) for body in changes(f"cus_{n}", 1)]


def test_many_locked_customers_hold_up_no_other(world: StripeWorld):
    """As a batch locks them, in one transaction: more than the pool has connections."""
    locked = []
    for number in range(30):
        customer = f"{LOCKED}{number}"
        world.send("customer.created", make_customer(customer, world.user()))
        locked += changes(customer, 3)
    lock = held(world.url, "SELECT FROM app.users FOR UPDATE")
    with serving(world.url) as served, lock:
        answers, rest, health = asyncio.run(deliver(served, locked, others()))
        assert waiting(world.conn) == 0
    assert {a.status for a in rest + health} == {200}
    assert max(a.seconds for a in rest + health) < 3
    assert {a.status for a in answers} == {503}
    assert max(a.seconds for a in answers) < 6


def test_slow_api_of_stripe_holds_up_no_other(world: StripeWorld):
    """Each asks while its customer is locked, with a connection."""
    world.fake.faults.add("slow", seconds=20, times=None)
    asking = [
        make_event(
            "invoice.paid",
            {"object": "invoice", "customer": f"cus_a{n}", "subscription": f"sub_{n}"},
        )
        for n in range(20)
    ]
    with serving(world.url, api=world.fake.base_url) as served:
        answers, rest, health = asyncio.run(deliver(served, asking, others()))
    world.fake.faults.clear()
    assert {a.status for a in rest + health} == {200}
    assert max(a.seconds for a in rest + health) < 3
    assert {a.status for a in answers} <= {500, 503}
    assert max(a.seconds for a in answers) < 6
