"""`pyapp quota` shows below each subscriber its status and what is to end."""

import json
from typing import Any
from uuid import UUID

import pytest

from pyapp.cli import quota as command
from pyapp.messages import record_messages
from pyapp.quota import list_user_quotas
from tests.metering import add_fingerprint, add_user, new_message
from tests.stripe_world import (
    StripeWorld,
    make_customer,
    make_item,
    make_items,
    make_subscription,
    seconds,
)
from tests.support import run_cli, use_terminal

LATER = {
    "end": seconds(2099, 12, 31),
    "cancel_at": seconds(2099, 12, 1),
    "trial_end": seconds(2099, 11, 1, 9, 30),
}
PAUSED = {"pause_collection": {"behavior": "void", "resumes_at": seconds(2099, 11, 15)}}
OPEN_PAUSE = {"pause_collection": {"behavior": "keep_as_draft", "resumes_at": None}}
# The longest lines that there can be.
LONGEST = {
    **LATER,
    "status": "trialing",
    "cancel_at": seconds(2099, 12, 1, 9, 30),
    "pause_collection": {
        "behavior": "mark_uncollectible",
        "resumes_at": seconds(2099, 11, 15, 23, 59),
    },
}


@pytest.fixture(autouse=True)
def _database(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", database)


def subscribe(
    world: StripeWorld, fields: dict[str, Any], email: str = "ada@example.com"
) -> UUID:
    user_id = world.create_user(email)
    customer = f"cus_{user_id}"
    world.handle_event("customer.created", make_customer(customer, user_id))
    shape = make_subscription(f"sub_{user_id}", customer, **fields)
    world.handle_event("customer.subscription.created", shape)
    return user_id


def shown(*arguments: str) -> list[str]:
    code, out, err = run_cli("quota", *arguments)

    assert (code, err) == (0, "")
    return out.splitlines()


@pytest.mark.parametrize(
    ("fields", "notes"),
    [
        ({}, ["  subscription active"]),
        ({"status": "past_due"}, ["  subscription past_due"]),
        (LATER, ["  subscription active, ends 2099-12-01"]),
        (
            {**LATER, "status": "trialing"},
            ["  subscription trialing until 2099-11-01 09:30, ends 2099-12-01"],
        ),
        (
            PAUSED,
            ["  subscription active", "  payments paused (void) until 2099-11-15"],
        ),
        (OPEN_PAUSE, ["  subscription active", "  payments paused (keep_as_draft)"]),
        ({**LATER, **PAUSED, "status": "canceled"}, ["  subscription canceled"]),
        (
            {"price": "price_lost"},
            ["  subscription active", "  no plan has its price: price_lost"],
        ),
        (
            {"items": make_items()},
            ["  subscription active", "  no plan has its price: (none)"],
        ),
        (
            {"items": make_items(make_item("si_1", quantity=0))},
            ["  subscription active", "  no plan: its quantity is 0"],
        ),
    ],
)
def test_lines_below_a_subscriber_show_what_is_to_end_or_missing(
    world: StripeWorld, fields: dict[str, object], notes: list[str]
) -> None:
    subscribe(world, fields)

    assert shown("ada@example.com")[2:] == shown("--all")[2:] == notes


def test_nothing_is_shown_below_payers_without_a_subscription(
    world: StripeWorld,
) -> None:
    world.create_user("ada@example.com")
    fingerprint = add_fingerprint(world.conn)
    record_messages(world.conn, [new_message(fingerprint_id=fingerprint)])

    assert len(shown("ada@example.com")) == 2
    # The whole id, which its column cuts.
    assert shown(str(fingerprint))[2:] == [f"  {fingerprint}"]
    assert shown("--all")[3:] == [f"  {fingerprint}"]


def test_lines_fit_a_terminal_of_80_columns(
    world: StripeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_screen = use_terminal(monkeypatch)
    email = "a" * 60 + "@example.com"
    subscribe(world, LONGEST, email)

    assert shown("--all") == []

    lines = read_screen()
    assert max(map(len, lines)) <= 80
    assert lines[2:] == [
        f"  {email}",
        "  subscription trialing until 2099-11-01 09:30, ends 2099-12-01 09:30",
        "  payments paused (mark_uncollectible) until 2099-11-15 23:59",
    ]


def test_json_has_the_times_of_a_subscription(world: StripeWorld) -> None:
    subscribe(world, {**LATER, **PAUSED})

    (line,) = shown("ada@example.com", "--json")
    found = json.loads(line)

    assert {key: found[key] for key in list(found)[-7:]} == {
        "plan_id": "paid",
        "subscription_status": "active",
        "ends_at": "2099-12-01T00:00:00+00:00",
        "trial_end": "2099-11-01T09:30:00+00:00",
        "pause_behavior": "void",
        "pause_resumes_at": "2099-11-15T00:00:00+00:00",
        "reason": None,
    }


def test_all_pairs_each_user_with_its_own_subscription(
    world: StripeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when users are created and deleted between the two lists."""
    monkeypatch.setattr(command, "PAGE", 2)
    statuses = ["active", "trialing", "past_due", "unpaid", "canceled"]
    users = {
        str(subscribe(world, {"status": status}, f"{status}@b.example")): status
        for status in statuses
    }
    created = UUID(int=UUID(min(users)).int - 1)
    deleted = add_user(world.conn, id=UUID(int=1))

    def list_after_changes(*args, after: UUID | None, **options):
        if after is None:
            world.conn.execute("DELETE FROM app.users WHERE id = %s", [deleted])
            add_user(world.conn, id=created)
        return list_user_quotas(*args, after=after, **options)

    monkeypatch.setattr(command, "list_user_quotas", list_after_changes)

    lines = [json.loads(line) for line in shown("--all", "--json")]

    assert {line["subject_id"]: line["subscription_status"] for line in lines} == {
        str(created): None,
        **users,
    }
