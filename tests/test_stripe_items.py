"""The best item of all live customers of a user decides what the user has.

The order: its subscription entitles; its price buys a plan; active or trialing before
past_due; most credits; latest period end; ids.
"""

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyapp.plans import add_plan_price, create_plan
from tests.stripe_world import (
    NUMBERS,
    START,
    StripeWorld,
    make_customer,
    make_item,
    make_items,
    make_subscription,
    moment,
    stripe_world,
)

CREATED = "customer.subscription.created"
UPDATED = "customer.subscription.updated"
ENDED = "customer.subscription.deleted"
FREE = 2500
# Credits of the plans, by price. The last two buy the same plan.
PLANS = {"price_basic": 10_000, "price_pro": 50_000, "price_max": 200_000}
YEARLY = "price_pro_year"
ENTITLING = ("active", "trialing", "past_due")


@pytest.fixture(scope="module")
def world(module_database: str) -> Iterator[StripeWorld]:
    """Return a world that all tests of this file share."""
    with stripe_world(module_database) as shared:
        for price, amount in PLANS.items():
            plan = price.removeprefix("price_")
            create_plan(shared.conn, plan_id=plan, monthly_credits=Decimal(amount))
            add_plan_price(shared.conn, plan_id=plan, stripe_price_id=price)
        add_plan_price(shared.conn, plan_id="pro", stripe_price_id=YEARLY)
        yield shared


@dataclass(frozen=True, slots=True)
class Payer:
    """A user of the shared world, whose Stripe ids end with `tag`."""

    world: StripeWorld
    user_id: UUID
    tag: str

    def add_customer(self, name: str = "cus") -> str:
        customer = f"{name}_{self.tag}"
        shape = make_customer(customer, self.user_id)
        self.world.handle_event("customer.created", shape)
        return customer

    def subscribe(
        self,
        name: str,
        *items: Mapping[str, Any],
        customer: str = "cus",
        created: int = START,
        **fields: Any,
    ) -> str:
        subscription = f"{name}_{self.tag}"
        fields["items"] = make_items(*items)
        shape = make_subscription(subscription, f"{customer}_{self.tag}", **fields)
        kind = ENDED if fields.get("status") == "canceled" else UPDATED
        assert self.world.handle_event(kind, shape, created).result == "applied"
        return subscription

    def best(self) -> tuple[str | None, ...]:
        """Return customer, subscription and price of the user's row, without tag."""
        user = self.world.get_user(self.user_id)
        found = (user.stripe_customer_id, user.stripe_subscription_id)
        tag = f"_{self.tag}"
        names = (name and name.removesuffix(tag) for name in found)
        return (*names, user.stripe_price_id)

    def quota(self) -> int:
        return int(self.world.get_user(self.user_id).base_quota)


@pytest.fixture
def payer(world: StripeWorld) -> Payer:
    return Payer(world, world.create_user(), f"{next(NUMBERS):06}")


PRO, BASIC, OTHER = ("price_pro", "price_basic", "price_newsletter")
TIERED = {"id": PRO, "object": "price", "unit_amount": None}

# Pairs of items: the first is better than the second.
BETTER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a plan before another product": (
        {"price": BASIC},
        {"price": OTHER, "quantity": 9, "current_period_end": START + 999_999},
    ),
    "a plan before no price": ({"price": BASIC}, {"price": None}),
    "a plan before quantity 0": ({"price": BASIC}, {"price": PRO, "quantity": 0}),
    "the larger plan": (
        {"price": PRO, "current_period_end": START + 5},
        {"price": BASIC, "current_period_end": START + 999_999},
    ),
    "the larger product of credits and quantity": (
        {"price": BASIC, "quantity": 6},
        {"price": PRO, "quantity": 1},
    ),
    "a metered item counts once": (
        {"price": PRO, "quantity": None},
        {"price": BASIC, "quantity": 4},
    ),
    "two before a metered one": (
        {"price": BASIC, "quantity": 2},
        {"price": BASIC, "quantity": None},
    ),
    "the later end": (
        {"price": PRO, "current_period_end": START + 101},
        {"price": YEARLY, "current_period_end": START + 100},
    ),
    "an end before none": (
        {"price": PRO, "current_period_end": START - 5},
        {"price": YEARLY, "current_period_end": None},
    ),
    "another product that ends later": (
        {"price": OTHER, "current_period_end": START + 101},
        {"price": "price_unknown", "current_period_end": START + 100},
    ),
    "another product before quantity 0 that ends first": (
        {"price": OTHER, "current_period_end": START + 101},
        {"price": PRO, "quantity": 0, "current_period_end": START + 100},
    ),
    "quantity 0 that ends later before another product": (
        {"price": PRO, "quantity": 0, "current_period_end": START + 101},
        {"price": OTHER, "current_period_end": START + 100},
    ),
    "another product before none": (
        {"price": OTHER, "quantity": 0},
        {"price": None, "current_period_end": None},
    ),
}


@pytest.mark.parametrize("rule", BETTER)
@pytest.mark.parametrize("place", ["one subscription", "two", "two customers"])
@pytest.mark.parametrize("is_first", [True, False])
def test_better_item_wins_wherever_it_is(
    payer: Payer, rule: str, place: str, is_first: bool
):
    """Neither its place in a list nor the order of arrival decides."""
    better, worse = BETTER[rule]
    # By its ids the better item would come last.
    items = [make_item("si_b", **better), make_item("si_a", **worse)]
    names = [("sub_b", "cus_b"), ("sub_a", "cus_a")]
    if not is_first:
        items, names = items[::-1], names[::-1]
    if place == "one subscription":
        payer.add_customer("cus_b")
        payer.subscribe("sub_b", *items, customer="cus_b")
    for item, (name, customer) in zip(items, names, strict=True):
        if place == "two customers":
            payer.add_customer(customer)
            payer.subscribe(name, item, customer=customer)
        elif place == "two":
            payer.add_customer("cus_b")
            payer.subscribe(name, item, customer="cus_b")
    assert payer.best() == ("cus_b", "sub_b", better["price"])


BETTER_SUBSCRIPTIONS = {
    "entitled before not": (("past_due", OTHER, 0), ("canceled", "price_max", 9)),
    "past_due entitles": (("past_due", BASIC, 1), ("unpaid", PRO, 9)),
    "paused does not": (("active", OTHER, 1), ("paused", PRO, 1)),
    "incomplete does not": (("trialing", OTHER, 1), ("incomplete", PRO, 1)),
    "an unknown status does not": (("active", OTHER, 1), ("enchanted", PRO, 1)),
    "a plan past due before another product": (
        ("past_due", BASIC, 1),
        ("active", OTHER, 9),
    ),
    "active before past_due": (("active", BASIC, 1), ("past_due", "price_max", 9)),
    "trialing before past_due": (("trialing", BASIC, 1), ("past_due", PRO, 1)),
    "trialing is as good as active": (("trialing", PRO, 1), ("active", BASIC, 1)),
    "active is as good as trialing": (("active", PRO, 1), ("trialing", BASIC, 1)),
    "an ended plan before an ended product": (
        ("canceled", BASIC, 1),
        ("canceled", OTHER, 1),
    ),
}


@pytest.mark.parametrize("rule", BETTER_SUBSCRIPTIONS)
@pytest.mark.parametrize("is_first", [True, False])
def test_better_subscription_wins_in_any_order(payer: Payer, rule: str, is_first: bool):
    pairs = list(zip(("b", "a"), BETTER_SUBSCRIPTIONS[rule], strict=True))
    for name, (status, price, quantity) in pairs if is_first else pairs[::-1]:
        payer.add_customer(f"cus_{name}")
        item = make_item("si_1", price, quantity=quantity)
        payer.subscribe(f"sub_{name}", item, customer=f"cus_{name}", status=status)
    status, price, quantity = BETTER_SUBSCRIPTIONS[rule][0]
    assert payer.best() == ("cus_b", "sub_b", price)
    bought = PLANS.get(price, 0) * quantity if status in ENTITLING else 0
    assert payer.quota() == (bought or FREE)


def test_ids_decide_between_equal_items(payer: Payer):
    payer.add_customer()
    second = make_item("si_2", YEARLY)
    for items in ([second, make_item("si_1", PRO)], [make_item("si_3", PRO), second]):
        expected = min(items, key=lambda item: item["id"])["price"]["id"]
        payer.subscribe("sub_b", *items, created=START + next(NUMBERS))
        assert payer.best() == ("cus", "sub_b", expected)
    payer.subscribe("sub_a", make_item("si_9", PRO))
    assert payer.best() == ("cus", "sub_a", PRO)


@pytest.mark.parametrize(
    ("quantity", "quota"),
    [(0, FREE), (1, 50_000), (5, 250_000), (None, 50_000), (10**12, 5 * 10**16)],
)
def test_quota_is_credits_times_quantity(payer: Payer, quantity, quota):
    payer.add_customer()
    payer.subscribe("sub", make_item("si_1", PRO, quantity=quantity))
    assert payer.quota() == quota


def test_items_do_not_add_up(payer: Payer):
    payer.add_customer()
    items = [make_item(f"si_{price}", price) for price in (BASIC, PRO, YEARLY, OTHER)]
    payer.subscribe("sub_1", *items)
    payer.subscribe("sub_2", *items[:2])
    assert payer.quota() == 50_000


def test_user_falls_back_through_all_items(payer: Payer):
    """Two customers with two subscriptions of three items; each best one ends."""
    payer.add_customer("cus_a")
    payer.add_customer("cus_b")
    shapes = {
        ("sub_1", "cus_a"): [(OTHER, 1), (PRO, 5), (BASIC, 1)],
        ("sub_2", "cus_b"): [(PRO, 4), (BASIC, 1), (OTHER, 2)],
        ("sub_3", "cus_a"): [(BASIC, 1), (OTHER, 1), (PRO, 3)],
        ("sub_4", "cus_b"): [(OTHER, 1), (OTHER, 1), (BASIC, 2)],
    }
    found, quotas = [], []
    for (name, customer), items in shapes.items():
        listed = [make_item(f"si_{n}", p, quantity=q) for n, (p, q) in enumerate(items)]
        payer.subscribe(name, *listed, customer=customer)
    for name, customer in shapes:
        found.append(payer.best())
        quotas.append(payer.quota())
        payer.subscribe(
            name,
            make_item("si_1", PRO),
            customer=customer,
            status="canceled",
            created=START + 9,
        )
    assert found == [
        ("cus_a", "sub_1", PRO),
        ("cus_b", "sub_2", PRO),
        ("cus_a", "sub_3", PRO),
        ("cus_b", "sub_4", BASIC),
    ]
    assert quotas == [250_000, 200_000, 150_000, 20_000]
    assert payer.quota() == FREE
    assert not payer.world.get_user(payer.user_id).subscription_active


def test_deleted_customer_does_not_hide_a_live_one(payer: Payer):
    gone, live = payer.add_customer("cus_a"), payer.add_customer("cus_b")
    payer.subscribe("sub_a", make_item("si_1", "price_max"), customer="cus_a")
    payer.subscribe("sub_b", make_item("si_1", OTHER), customer="cus_b")
    payer.subscribe("sub_c", make_item("si_1"), customer="cus_b", status="unpaid")
    assert payer.best() == ("cus_a", "sub_a", "price_max")
    outcome = payer.world.handle_event(
        "customer.deleted", make_customer(gone, payer.user_id), START + 5
    )
    assert outcome.user_ids == (payer.user_id,)
    assert (payer.best(), payer.quota()) == (("cus_b", "sub_b", OTHER), FREE)
    # Also if no subscription of the live one entitles.
    payer.subscribe("sub_b", customer="cus_b", status="canceled", created=START + 5)
    assert payer.best()[:2] == ("cus_b", "sub_c")

    payer.world.handle_event(
        "customer.deleted", make_customer(live, payer.user_id), START + 6
    )
    user = payer.world.get_user(payer.user_id)
    assert (user.subscription_status, payer.quota()) == ("canceled", FREE)


def test_subscription_without_items_comes_after_a_plan(payer: Payer):
    payer.add_customer()
    payer.subscribe("sub_a")
    assert (payer.best(), payer.quota()) == (("cus", "sub_a", None), FREE)
    assert payer.world.get_user(payer.user_id).subscription_active
    payer.subscribe("sub_b", make_item("si_1", BASIC), status="past_due")
    assert payer.best() == ("cus", "sub_b", BASIC)


# Versions of one subscription: items added, changed, replaced and removed.
VERSIONS = [
    [("si_1", OTHER, 1)],
    [("si_1", OTHER, 1), ("si_2", "price_max", 1)],
    [("si_1", PRO, 3), ("si_2", "price_max", 1)],
    [("si_1", PRO, 2), ("si_3", BASIC, 1)],
]


@pytest.mark.parametrize(
    "order", [*itertools.permutations(range(len(VERSIONS)))], ids=str
)
def test_items_are_those_of_the_newest_event(payer: Payer, order: tuple[int, ...]):
    """A late older event neither revives an item nor takes one away."""
    payer.add_customer()
    newest = -1
    for number in order:
        items = [make_item(i, p, quantity=q) for i, p, q in VERSIONS[number]]
        shape = make_subscription(f"sub_{payer.tag}", f"cus_{payer.tag}")
        shape["items"] = make_items(*items)
        outcome = payer.world.handle_event(UPDATED, shape, START + number)
        assert outcome.result == ("applied" if number > newest else "stale")
        newest = max(newest, number)
        expected = [(i, p, q) for i, p, q in VERSIONS[newest]]
        found = payer.world.items(f"sub_{payer.tag}")
        assert [(i.id, i.price_id, i.quantity) for i in found] == expected
    assert (payer.best(), payer.quota()) == (("cus", "sub", PRO), 100_000)


def test_items_of_different_subscriptions_may_have_one_id(payer: Payer):
    payer.add_customer()
    for name, price in (("sub_1", PRO), ("sub_2", BASIC)):
        payer.subscribe(name, make_item("si_same", price))
    payer.subscribe("sub_1", created=START + 1)
    assert payer.world.items(f"sub_1_{payer.tag}") == []
    assert payer.best() == ("cus", "sub_2", BASIC)


def test_all_fields_of_an_item_are_stored(payer: Payer):
    start, end = START + 60, START + 70
    prices = [
        ({"id": PRO, "unit_amount": 1999, "unit_amount_decimal": "1999"}, 1999),
        ({"id": PRO, "unit_amount": None, "unit_amount_decimal": "0.25"}, "0.25"),
        ({"id": PRO, "unit_amount": 0}, 0),
        ({"id": PRO, "unit_amount": None, "billing_scheme": "tiered"}, None),
        (PRO, 2000),
    ]
    items = [
        make_item(f"si_{n}", price, current_period_start=start, current_period_end=end)
        for n, (price, _) in enumerate(prices)
    ]
    subscription = payer.subscribe("sub", *items)
    stored = payer.world.items(subscription)
    assert [i.unit_amount is None for i in stored] == [False] * 3 + [True, False]
    assert [str(i.unit_amount) for i in stored] == [str(amount) for _, amount in prices]
    times = {(i.current_period_start, i.current_period_end) for i in stored}
    assert times == {(moment(start), moment(end))}


CHANGES: list[dict[str, Any]] = [
    {"price": {"id": BASIC, "unit_amount": 2000}},
    {"price": {"id": PRO, "unit_amount": 0}},
    {"price": {"id": PRO, "unit_amount": None}},
    {"quantity": 2},
    {"quantity": None},
    {"current_period_start": START + 1},
    {"current_period_end": START + 2},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_change_of_one_field_of_an_item_is_stored(payer: Payer, change: dict[str, Any]):
    payer.add_customer()
    other = make_item("si_2", OTHER)
    before = payer.subscribe("sub", make_item("si_1", PRO), other)
    first = payer.world.items(before)
    payer.subscribe("sub", make_item("si_1", PRO) | change, other)
    second = payer.world.items(before)
    assert second[1:] == first[1:]
    assert second[0] != first[0]


STATUSES = (*ENTITLING, "unpaid", "canceled", "incomplete_expired", "paused", "new")
ITEMS = st.lists(
    st.tuples(
        st.sampled_from([*PLANS, YEARLY, OTHER, None]),
        st.sampled_from([None, 0, 1, 5]),
        st.sampled_from([None, START - 1, START + 9, START + 99]),
    ),
    max_size=3,
)
CUSTOMERS = st.lists(
    st.tuples(
        st.booleans(),
        st.lists(st.tuples(st.sampled_from(STATUSES), ITEMS), max_size=2),
    ),
    min_size=1,
    max_size=3,
)


def sort_key(status: str, item: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """Return the place of an item in the order of the design; the best is least."""
    price, quantity, end = item or (None, None, None)
    plan_credits = PLANS["price_pro"] if price == YEARLY else PLANS.get(price)
    number = 1 if quantity is None else quantity
    buys = plan_credits is not None and number > 0
    return (
        status not in ENTITLING,
        not buys,
        status == "past_due",
        -(plan_credits or 0) * number if buys else 0,
        -(START - 99 if end is None else end),
    )


@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(customers=CUSTOMERS, seed=st.integers(0, 99))
def test_any_mirror_gives_its_best_item(world: StripeWorld, customers, seed):
    """The expected item is computed from the order at the top of this file."""
    payer = Payer(world, world.create_user(), f"{next(NUMBERS):06}")
    events, candidates = [], []
    has_live = not all(is_deleted for is_deleted, _ in customers)
    for c, (is_deleted, subscriptions) in enumerate(customers):
        shape = make_customer(f"cus_{c}_{payer.tag}", payer.user_id)
        events.append(("customer.deleted" if is_deleted else "customer.updated", shape))
        for s, (status, items) in enumerate(subscriptions):
            name = f"sub_{c}{s}_{payer.tag}"
            listed = [
                make_item(f"si_{n}", price, quantity=quantity, current_period_end=end)
                for n, (price, quantity, end) in enumerate(items)
            ]
            fields = {"status": status, "items": make_items(*listed), "end": None}
            events.append((UPDATED, make_subscription(name, shape["id"], **fields)))
            if is_deleted and has_live:
                continue
            is_gone = is_deleted and status != "incomplete_expired"
            status = "canceled" if is_gone else status
            for item in items or [None]:
                key = (*sort_key(status, item), name, items.index(item) if item else 0)
                price = item[0] if item else None
                candidates.append((key, shape["id"], name, price, status))
    random.Random(seed).shuffle(events)
    for kind, shape in events:
        assert world.handle_event(kind, shape).result == "applied"

    user = world.get_user(payer.user_id)
    if not candidates:
        assert (user.stripe_subscription_id, payer.quota()) == (None, FREE)
        return
    key, *expected = min(candidates)
    assert [
        user.stripe_customer_id,
        user.stripe_subscription_id,
        user.stripe_price_id,
        user.subscription_status,
    ] == expected
    assert payer.quota() == (-key[3] if not key[0] and not key[1] else FREE)
