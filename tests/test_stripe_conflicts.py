"""Claims that change, end, lose, or name what is not a user."""

from uuid import UUID, uuid4

import pytest

from pyapp.fingerprints import get_fingerprint, upsert_fingerprint
from pyapp.stripe_sync import reconcile
from pyapp.users import anonymize_user, mark_user_email_verified
from tests.stripe_claims import (
    COMPLETED,
    FREE,
    PAID,
    SOURCES,
    UPDATED,
    add_paid_customer,
    claim,
    claimed,
    insert,
    quota,
)
from tests.stripe_world import (
    START,
    StripeWorld,
    make_checkout,
    make_subscription,
    moment,
)


@pytest.mark.parametrize("source", ["customer", "subscription"])
@pytest.mark.parametrize("is_late", [False, True])
def test_changed_claim_moves_the_link(world: StripeWorld, source: str, is_late: bool):
    """A late delivery of the former claim changes nothing."""
    first, second = world.create_user(), world.create_user()
    events = [(first, START + 1), (second, START + 2)]
    for user_id, created in events[::-1] if is_late else events:
        claim(world, source, user_id, created=created)
    assert claimed(world) == (second, second, source)
    assert world.get_user(first).stripe_customer_id is None


def test_page_takes_a_corrected_claim_before_a_conflict(world: StripeWorld):
    """In events too, the subscription that made the claim moves it."""
    first, second, other = (world.create_user() for _ in range(3))
    customer = world.create_customer()
    made = world.subscribe(customer, metadata={"user_id": str(first)})
    world.fake.advance(seconds=5)
    # Stripe lists the newest first.
    world.subscribe(customer, metadata={"user_id": str(other)})
    world.handle_all()
    assert claimed(world, customer)[0] == first

    world.client.v1.subscriptions.update(made, {"metadata": {"user_id": str(second)}})
    found = world.reconcile()

    assert claimed(world, customer) == (second, second, "subscription")
    assert [one.user_id for one in found if one.kind == "conflict"] == [other]
    assert [quota(world, one) for one in (first, second)] == [FREE, PAID]


@pytest.mark.parametrize("has_client", [False, True])
def test_claim_in_the_second_of_the_creation_is_not_lost(
    world: StripeWorld, has_client: bool
):
    """Integrations name the user right after they create the subscription."""
    user_id = world.create_user()
    customer = world.create_customer()
    subscription = world.subscribe(customer)
    world.client.v1.subscriptions.update(
        subscription, {"metadata": {"user_id": str(user_id)}}
    )
    client = world.client if has_client else None
    # With a client, an earlier event has fetched the claim.
    assert world.handle_all(client)[-1] == ("stale" if has_client else "applied")
    assert quota(world, user_id) == PAID
    assert world.subscription_row(subscription).is_provisional != has_client


@pytest.mark.parametrize("order", [1, -1])
def test_claims_of_one_second_are_fetched(world: StripeWorld, order: int):
    first, second = world.create_user(), world.create_user()
    customer = world.create_customer()
    subscription = world.subscribe(customer, metadata={"user_id": str(first)})
    world.client.v1.subscriptions.update(
        subscription, {"metadata": {"user_id": str(second)}}
    )
    created, updated = world.pop_deliveries("customer.subscription.created", UPDATED)
    for delivery in (created, updated)[::order]:
        assert world.handle_delivery(delivery, world.client).result == "applied"
    assert claimed(world, customer) == (second, second, "subscription")


def test_subscription_keeps_a_claim_that_another_one_shares(world: StripeWorld):
    first, second = world.create_user(), world.create_user()
    for name in ("sub_1", "sub_2"):
        claim(world, "subscription", first, name)
    assert claim(world, "subscription", second, "sub_1").conflicting_user_id == second
    assert claimed(world) == (first, first, "subscription")
    outcome = claim(world, "subscription", second, "sub_2")
    assert set(outcome.user_ids) == {first, second}
    assert claimed(world) == (second, second, "subscription")


def test_changed_claim_of_a_losing_subscription_stays_a_conflict(world: StripeWorld):
    owner, second, third = (world.create_user() for _ in range(3))
    claim(world, "customer", owner)
    for user_id in (second, third):
        assert claim(world, "subscription", user_id).conflicting_user_id == user_id
    assert claimed(world) == (owner, owner, "customer")


def test_link_outlives_its_claim_and_resists_all_but_the_customer(world: StripeWorld):
    add_paid_customer(world)
    owner, other = world.create_user(), world.create_user()
    claim(world, "customer", owner)
    claim(world, "customer", None)
    assert claimed(world) == (owner, None, None)
    for source in SOURCES[1:]:
        assert claim(world, source, other).conflicting_user_id == other
        assert claimed(world) == (owner, None, None)
    claim(world, "customer", other)
    assert claimed(world) == (other, other, "customer")


def test_link_of_another_than_the_best_customer_outlives_its_claim(
    world: StripeWorld,
):
    owner = world.create_user()
    add_paid_customer(world)
    for customer in ("cus_1", "cus_2"):
        claim(world, "customer", owner, customer=customer)
    assert world.get_user(owner).stripe_customer_id == "cus_1"
    claim(world, "customer", None, customer="cus_2")
    assert claimed(world, "cus_2") == (owner, None, None)


def test_customer_that_stripe_deleted_keeps_its_claim(world: StripeWorld):
    """The deleted object has no metadata."""
    owner, customer, _ = world.create_subscribed_user()
    world.client.v1.customers.delete(customer)
    world.pop_deliveries()
    world.fake.advance(seconds=60)
    world.reconcile()
    assert world.customer_row(customer).is_deleted
    assert claimed(world, customer) == (owner, owner, "customer")


def test_claim_that_is_removed_before_its_user_exists_has_no_effect(
    world: StripeWorld,
):
    add_paid_customer(world)
    absent, user_id = uuid4(), world.create_user()
    claim(world, "customer", absent)
    claim(world, "customer", None)
    assert claimed(world) == (None, None, None)
    insert(world.conn, absent)
    assert quota(world, absent) == FREE
    claim(world, "reference", user_id)
    assert quota(world, user_id) == PAID


def test_conflict_is_reported_by_every_reconciliation(world: StripeWorld):
    owner, other = world.create_user(), world.create_user()
    customer = world.create_customer(owner)
    subscription = world.subscribe(customer, metadata={"user_id": str(other)})
    expected = ("conflict", subscription, other, False)
    for options in ({}, {"dry_run": True}, {"page_size": 1}, {}):
        found = world.reconcile(**options)
        conflicts = [
            (d.kind, d.object_id, d.user_id, d.is_repaired)
            for d in found
            if d.kind == "conflict"
        ]
        assert conflicts == [expected]
    assert [d.kind for d in found] == ["conflict"]
    assert claimed(world, customer)[0] == owner
    assert [quota(world, one) for one in (owner, other)] == [PAID, FREE]

    world.fake.advance(seconds=2)
    run = reconcile(world.conn, world.client)
    assert (run.found["conflict"], run.repaired["conflict"]) == (1, 0)
    world.client.v1.subscriptions.update(
        subscription, {"metadata": {"user_id": str(owner)}}
    )
    assert "conflict" not in {d.kind for d in world.reconcile()}
    assert world.reconcile() == []


@pytest.mark.parametrize("is_dry_run", [True, False])
def test_reconciliation_reports_the_user_that_loses_a_customer(
    world: StripeWorld, is_dry_run: bool
):
    """The former one, when a subscription claims the customer for another user."""
    former, owner = world.create_user(), world.create_user()
    customer = world.create_customer()
    subscription = world.subscribe(customer, metadata={"user_id": str(former)})
    world.handle_all()
    world.client.v1.subscriptions.update(
        subscription, {"metadata": {"user_id": str(owner)}}
    )
    found = world.reconcile(dry_run=is_dry_run)
    lost = [(d.object_id, d.kind) for d in found if d.user_id == former]
    assert lost == [(str(former), kind) for kind in ("status", "price")]
    assert {d.is_repaired for d in found} == {not is_dry_run}
    assert world.reconcile(dry_run=is_dry_run) == (found if is_dry_run else [])


def test_dry_run_reports_the_conflict_that_a_run_reports(world: StripeWorld):
    owner, other = world.create_user(), world.create_user()
    customer = world.create_customer(owner)
    world.subscribe(customer, metadata={"user_id": str(other)})
    dry, wet = world.reconcile(dry_run=True), world.reconcile()
    assert [(d.kind, d.object_id, d.user_id) for d in dry] == [
        (d.kind, d.object_id, d.user_id) for d in wet
    ]
    assert {d.kind for d in wet} == {"missing_here", "conflict"}


def test_two_claims_of_one_checkout_are_a_conflict(world: StripeWorld):
    first, second = world.create_user(), world.create_user()
    shape = make_checkout("cus_1", second, metadata={"user_id": str(first)})
    outcome = world.handle_event(COMPLETED, shape)
    assert (outcome.result, outcome.user_ids) == ("applied", (first,))
    assert outcome.conflicting_user_id == second
    assert claimed(world) == (first, first, "checkout")


def test_either_claim_of_a_checkout_is_a_conflict(world: StripeWorld):
    owner, other = world.create_user(), world.create_user()
    claim(world, "customer", owner)
    for reference, name in ((owner, other), (other, owner)):
        shape = make_checkout("cus_1", reference, metadata={"user_id": str(name)})
        assert world.handle_event(COMPLETED, shape).conflicting_user_id == other


def test_reference_of_an_attacker_takes_nothing_from_a_user(world: StripeWorld):
    """A payer can write any client_reference_id into a payment link's URL."""
    victim, attacker = world.create_user(), world.create_user()
    add_paid_customer(world)
    claim(world, "customer", victim)
    before = world.get_user(victim)
    # A fresh customer, that pays less, as a payment link creates it.
    world.handle_event(COMPLETED, make_checkout("cus_2", victim), START + 1)
    cheap = make_subscription("sub_cheap", "cus_2", price="price_other")
    world.handle_event(UPDATED, cheap, START + 1)
    assert world.get_user(victim) == before
    # The attacker's own customer, and the victim's.
    claim(world, "customer", attacker, customer="cus_3")
    for customer, user_id in (("cus_3", victim), ("cus_1", attacker)):
        shape = make_checkout(customer, user_id)
        outcome = world.handle_event(COMPLETED, shape, START + 2)
        assert (outcome.result, outcome.conflicting_user_id) == ("ignored", user_id)
    assert world.get_user(victim) == before
    assert claimed(world, "cus_3")[0] == attacker


def test_two_customers_of_one_user_are_no_conflict(world: StripeWorld):
    user_id = world.create_user()
    for customer in ("cus_1", "cus_2"):
        outcome = claim(world, "reference", user_id, customer=customer)
        assert (outcome.result, outcome.conflicting_user_id) == ("applied", None)
        outcome = claim(world, "subscription", user_id, customer, customer=customer)
        assert outcome.conflicting_user_id is None
    assert [claimed(world, one)[0] for one in ("cus_1", "cus_2")] == [user_id] * 2


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("value", ["", " ", "7", "no uuid", "0" * 31, "a@b.example"])
def test_value_that_is_not_a_uuid_claims_no_user(
    world: StripeWorld, source: str, value: str
):
    add_paid_customer(world)
    outcome = claim(world, source, value)
    is_stored = source in ("customer", "subscription")
    assert outcome.result == ("applied" if is_stored else "ignored")
    assert claimed(world) == (None, None, None)


@pytest.mark.parametrize("source", SOURCES)
def test_id_of_a_fingerprint_is_not_a_user(world: StripeWorld, source: str):
    add_paid_customer(world)
    device = uuid4()
    upsert_fingerprint(world.conn, fingerprint_id=device)
    before = get_fingerprint(world.conn, fingerprint_id=device)
    assert claim(world, source, device).result == "applied"
    assert claimed(world) == (None, device, source)
    assert get_fingerprint(world.conn, fingerprint_id=device) == before


@pytest.mark.parametrize("source", SOURCES)
def test_anonymized_user_keeps_its_customer_and_its_claims(
    world: StripeWorld, source: str
):
    """What it has paid for is not personal data."""
    add_paid_customer(world)
    user_id = world.create_user()
    claim(world, source, user_id)
    anonymize_user(world.conn, user_id=user_id)
    second = f"{source}_2"
    claim(world, source, user_id, f"sub_{second}", customer=f"cus_{second}")
    assert claimed(world, f"cus_{second}")[0] == user_id
    assert (quota(world, user_id), claimed(world)[0]) == (PAID, user_id)
    assert world.get_user(user_id).stripe_customer_id == "cus_1"


def add_address(world: StripeWorld, name: str, *, is_verified: bool = True) -> UUID:
    user_id = world.create_user(f"{name}@example.com")
    if is_verified:
        mark_user_email_verified(
            world.conn, user_id=user_id, email=f"{name}@example.com"
        )
    return user_id


@pytest.mark.parametrize("source", SOURCES)
def test_address_is_weaker_than_every_claim(world: StripeWorld, source: str):
    ada, bob = add_address(world, "ada"), world.create_user()
    customer = world.create_customer(email="ADA@example.com")
    world.subscribe(customer)
    world.reconcile(match_email=True)
    assert claimed(world, customer) == (ada, ada, "email")
    assert quota(world, ada) == PAID

    claim(world, source, bob, created=START + 60, customer=customer)
    assert claimed(world, customer) == (bob, bob, source)
    assert [quota(world, one) for one in (ada, bob)] == [FREE, PAID]
    world.fake.advance(seconds=120)
    world.reconcile(match_email=True)
    # The customer's own metadata names no user, and a link stays.
    assert claimed(world, customer)[0] == bob


@pytest.mark.parametrize("source", SOURCES[1:])
def test_address_is_not_matched_while_a_claim_waits(world: StripeWorld, source: str):
    ada, absent = add_address(world, "ada"), uuid4()
    customer = world.create_customer(email="ada@example.com")
    world.handle_all()
    claim(world, source, absent, created=START + 1, customer=customer)
    world.fake.advance(seconds=60)
    world.reconcile(match_email=True)
    assert claimed(world, customer) == (None, absent, source)
    assert world.get_user(ada).stripe_customer_id is None


def test_only_a_verified_address_is_matched_and_only_if_asked(world: StripeWorld):
    ada = add_address(world, "ada")
    bob = add_address(world, "bob", is_verified=False)
    customers = [
        world.create_customer(email=f"{name}@example.com") for name in ("ada", "bob")
    ]
    for options in ({}, {"dry_run": True, "match_email": True}):
        world.reconcile(**options)
        owners = [store_user(world, customer) for customer in customers]
        assert owners == [None, None]
    world.reconcile(match_email=True)
    assert [store_user(world, customer) for customer in customers] == [ada, None]

    mark_user_email_verified(world.conn, user_id=bob, email="bob@example.com")
    world.reconcile(match_email=True)
    assert store_user(world, customers[1]) == bob
    assert world.get_user(bob).created_at == moment(START)


def test_address_is_matched_in_the_second_of_an_event(world: StripeWorld):
    """The page is ambiguous, so that the customer is fetched."""
    ada = add_address(world, "ada")
    customer = world.create_customer(email="ada@example.com")
    world.handle_all()
    reconcile(world.conn, world.client, match_email=True)
    assert store_user(world, customer) == ada


@pytest.mark.parametrize("page_size", [1, 100])
def test_one_address_of_two_customers_is_matched_alike(
    world: StripeWorld, page_size: int
):
    """A guest gets another customer with each checkout."""
    ada = add_address(world, "ada")
    customers = [world.create_customer(email="ada@example.com") for _ in range(3)]
    world.subscribe(customers[1])
    world.reconcile(match_email=True, page_size=page_size)
    owners = [store_user(world, customer) for customer in customers]
    assert owners == [ada, ada, ada]
    assert world.get_user(ada).stripe_customer_id == customers[1]
    # With a customer of its own, the user gets no further ones by its address.
    world.create_customer(ada)
    world.handle_all()
    late = world.create_customer(email="ada@example.com")
    world.reconcile(match_email=True, page_size=page_size)
    assert store_user(world, late) is None


def store_user(world: StripeWorld, customer: str) -> UUID | None:
    row = world.conn.execute(
        "SELECT user_id FROM app.stripe_customers WHERE id = %s", [customer]
    ).fetchone()
    user_id: UUID | None = row[0] if row else None
    return user_id
