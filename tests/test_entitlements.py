"""The entitlement of a user says what the user has, why, and until when."""

from decimal import Decimal
from uuid import UUID, uuid4

import psycopg
import pytest

from pyapp.entitlements import Entitlement, get_entitlement, list_entitlements
from pyapp.errors import UserNotFoundError
from pyapp.plans import add_plan_price
from pyapp.roles import apply_roles
from tests.metering import add_user
from tests.stripe_world import (
    START,
    StripeWorld,
    make_customer,
    make_subscription,
    moment,
)

DAY = 86400
END = START + 30 * DAY


@pytest.fixture
def user_id(world: StripeWorld) -> UUID:
    """Return a user with the customer cus_1."""
    user_id = world.create_user()
    world.handle_event("customer.created", make_customer("cus_1", user_id))
    return user_id


def subscribe(world: StripeWorld, **fields: object) -> None:
    shape = make_subscription("sub_1", "cus_1", end=END, **fields)
    world.handle_event("customer.subscription.created", shape)


def test_user_without_a_customer_has_the_free_quota(world: StripeWorld) -> None:
    user_id = world.create_user()

    assert get_entitlement(world.conn, user_id=user_id) == Entitlement(
        user_id=user_id,
        stripe_customer_id=None,
        stripe_subscription_id=None,
        stripe_price_id=None,
        plan_id=None,
        subscription_status=None,
        subscription_active=False,
        base_quota=Decimal(2500),
        ends_at=None,
        trial_end=None,
        pause_behavior=None,
        pause_resumes_at=None,
        reason="no_customer",
        differences=[],
    )


def test_subscriber_has_the_plan_and_all_that_will_end(
    world: StripeWorld, user_id: UUID
) -> None:
    subscribe(
        world,
        status="trialing",
        trial_end=START + 14 * DAY,
        cancel_at=START + 20 * DAY,
        pause_collection={"behavior": "void", "resumes_at": START + 16 * DAY},
    )

    assert get_entitlement(world.conn, user_id=user_id) == Entitlement(
        user_id=user_id,
        stripe_customer_id="cus_1",
        stripe_subscription_id="sub_1",
        stripe_price_id="price_month",
        plan_id="paid",
        subscription_status="trialing",
        subscription_active=True,
        base_quota=Decimal(50000),
        ends_at=moment(START + 20 * DAY),
        trial_end=moment(START + 14 * DAY),
        pause_behavior="void",
        pause_resumes_at=moment(START + 16 * DAY),
        reason=None,
        differences=[],
    )


@pytest.mark.parametrize(
    ("fields", "ends_at"),
    [
        ({}, None),
        ({"cancel_at_period_end": True}, END),
        ({"cancel_at": END + DAY}, END + DAY),
        ({"cancel_at": END - DAY, "cancel_at_period_end": True}, END - DAY),
        ({"cancel_at": END + DAY, "cancel_at_period_end": True}, END),
    ],
)
def test_subscription_ends_at_the_first_cancellation(
    world: StripeWorld, user_id: UUID, fields: dict[str, int], ends_at: int | None
) -> None:
    subscribe(world, **fields)

    found = get_entitlement(world.conn, user_id=user_id)
    assert found.ends_at == (None if ends_at is None else moment(ends_at))


@pytest.mark.parametrize(
    ("fields", "status", "reason"),
    [
        ({"price": "price_other"}, "active", "unknown_price"),
        ({"status": "canceled"}, "canceled", "inactive_subscription"),
        ({"status": "paused"}, "paused", "inactive_subscription"),
    ],
)
def test_without_a_plan_there_is_a_reason(
    world: StripeWorld, user_id: UUID, fields: dict[str, str], status: str, reason: str
) -> None:
    subscribe(world, **fields)

    found = get_entitlement(world.conn, user_id=user_id)
    assert (found.plan_id, found.base_quota) == (None, Decimal(2500))
    assert (found.subscription_status, found.reason) == (status, reason)
    assert found.subscription_active == (status == "active")


def test_price_of_quantity_zero_buys_no_plan(world: StripeWorld, user_id: UUID) -> None:
    shape = make_subscription("sub_1", "cus_1", end=END)
    shape["items"]["data"][0]["quantity"] = 0
    world.handle_event("customer.subscription.created", shape)

    found = get_entitlement(world.conn, user_id=user_id)
    assert (found.stripe_price_id, found.plan_id) == ("price_month", None)
    assert (found.base_quota, found.reason) == (Decimal(2500), "no_quantity")


def test_what_the_next_sync_changes_is_shown(world: StripeWorld, user_id: UUID) -> None:
    subscribe(world, price="price_other")
    add_plan_price(world.conn, plan_id="paid", stripe_price_id="price_other")

    found = get_entitlement(world.conn, user_id=user_id)
    assert (found.plan_id, found.differences) == ("paid", ["price", "period"])
    assert world.get_user(user_id).base_quota == Decimal(2500)


def test_unknown_user_has_no_entitlement(conn: psycopg.Connection) -> None:
    with pytest.raises(UserNotFoundError):
        get_entitlement(conn, user_id=uuid4())


def test_pages_list_every_user_once_by_id(conn: psycopg.Connection) -> None:
    users = sorted(add_user(conn) for _ in range(5))

    first = list_entitlements(conn, limit=2)
    second = list_entitlements(conn, after=first[-1].user_id, limit=2)
    third = list_entitlements(conn, after=second[-1].user_id, limit=2)

    assert [one.user_id for one in first + second + third] == users
    assert first == [get_entitlement(conn, user_id=user) for user in users[:2]]


@pytest.mark.parametrize("role", ["pyapp_app", "pyapp_sync", "pyapp_readonly"])
def test_every_role_may_read_an_entitlement(
    conn: psycopg.Connection, role: str
) -> None:
    user_id = add_user(conn)
    apply_roles(conn)
    conn.execute(f"SET LOCAL ROLE {role}")

    assert get_entitlement(conn, user_id=user_id).reason == "no_customer"
