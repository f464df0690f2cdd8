"""A locked customer blocks only its own deliveries."""

import asyncio
import json
from collections.abc import Sequence

import pytest

from pyapp.stripe_sync import Outcome, handle_webhook
from tests.fake_stripe import TEST_SECRET, sign
from tests.serving import Reply, Served, serving
from tests.stripe_world import (
    START,
    StripeWorld,
    count_lock_waits,
    held,
    make_customer,
    make_event,
    make_subscription,
)

UPDATED = "customer.subscription.updated"
LOCKED = "cus_locked"
OTHERS = 200


def handle(world: StripeWorld, body: bytes) -> Outcome:
    """Handle a delivery without the endpoint."""
    signature = sign(body, [TEST_SECRET])
    return handle_webhook(world.conn, body, signature, [TEST_SECRET])


def changes(customer: str, number: int) -> list[bytes]:
    """Return updates of one subscription, one second apart."""
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
) -> tuple[list[Reply], list[Reply], list[Reply]]:
    """Deliver all concurrently; return the replies, and those of /healthz."""

    async def repeat(body: bytes) -> list[Reply]:
        return [await served.post(body) for _ in range(rounds)]

    async def check_health() -> list[Reply]:
        replies = []
        for _ in range(10 if locked else 0):
            replies.append(await served.get("/healthz"))
            await asyncio.sleep(0.3)
        return replies

    first = [asyncio.create_task(repeat(body)) for body in locked]
    await asyncio.sleep(1 if locked else 0)
    health = asyncio.create_task(check_health())
    rest = await asyncio.gather(*(served.post(body) for body in others))
    return (
        [reply for replies in await asyncio.gather(*first) for reply in replies],
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
def test_locked_customer_does_not_delay_others(
    world: StripeWorld, lock: str, number: int, rounds: int
):
    world.handle_event("customer.created", make_customer(LOCKED, world.create_user()))
    seen, *locked = changes(LOCKED, number + 1)
    handle(world, seen)
    before, others = zip(*(changes(f"cus_{n}", 2) for n in range(OTHERS)), strict=True)
    with serving(world.url) as served:
        # The time on this machine without any lock.
        _, alone, _ = asyncio.run(deliver(served, [], before))
        with held(world.url, LOCKS[lock], LOCKED):
            replies, rest, health = asyncio.run(deliver(served, locked, others, rounds))
            assert count_lock_waits(world.conn) == 0
        statuses = {a.status for a in replies}
        stored = [event for event in world.events() if event[1] == "failed"]
        later = asyncio.run(served.post(locked[-1]))

    slowest = max(1.0, 2 * max(a.seconds for a in alone))
    assert {a.status for a in rest} == {200}
    assert max(a.seconds for a in rest) < slowest
    assert {a.status for a in health} == {200}
    assert max(a.seconds for a in health) < slowest
    assert statuses == {503}
    assert max(a.seconds for a in replies) < 6
    # They are stored with the error, and apply once the lock is released.
    assert len(stored) == number
    assert {str(event[3]).partition(":")[0] for event in stored} == {"LockNotAvailable"}
    assert later.status == 200
    for body in locked:
        field = f"event_id={json.loads(body)['id']} "
        logged = [line for line in served.log if field in line and "ERROR" in line]
        assert [line for line in logged if "kind=LockNotAvailable attempts=" in line]


def others() -> list[bytes]:
    return [body for n in range(OTHERS) for body in changes(f"cus_{n}", 1)]


def test_many_locked_customers_do_not_delay_others(world: StripeWorld):
    """One transaction locks more customers than the pool has connections."""
    locked = []
    for number in range(30):
        customer = f"{LOCKED}{number}"
        world.handle_event(
            "customer.created", make_customer(customer, world.create_user())
        )
        locked += changes(customer, 3)
    lock = held(world.url, "SELECT FROM app.users FOR UPDATE")
    with serving(world.url) as served, lock:
        replies, rest, health = asyncio.run(deliver(served, locked, others()))
        assert count_lock_waits(world.conn) == 0
    assert {a.status for a in rest + health} == {200}
    assert max(a.seconds for a in rest + health) < 3
    assert {a.status for a in replies} == {503}
    assert max(a.seconds for a in replies) < 6


def test_slow_stripe_api_does_not_delay_others(world: StripeWorld):
    """Each fetch holds a connection and its customer's lock."""
    world.fake.faults.add("slow", seconds=20, times=None)
    fetching = [
        make_event(
            "invoice.paid",
            {"object": "invoice", "customer": f"cus_a{n}", "subscription": f"sub_{n}"},
        )
        for n in range(20)
    ]
    with serving(world.url, api=world.fake.base_url) as served:
        replies, rest, health = asyncio.run(deliver(served, fetching, others()))
    world.fake.faults.clear()
    assert {a.status for a in rest + health} == {200}
    assert max(a.seconds for a in rest + health) < 3
    assert {a.status for a in replies} <= {500, 503}
    assert max(a.seconds for a in replies) < 6
