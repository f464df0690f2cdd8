"""`pyapp stripe reconcile` reports differences in its output and exit status."""

import itertools
import json
import re
from collections.abc import Iterator

import pytest
from rich.console import Console

import pyapp
from pyapp import plans, users
from pyapp.cli import repeating
from tests.fake_stripe import TEST_KEY, FakeStripe, seeded_user_id
from tests.fake_stripe.driving import subscribe
from tests.odd_objects import OddClient, customer, replaced_by, setting
from tests.support import run_cli


@pytest.fixture
def fake(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeStripe]:
    with FakeStripe(seed=5) as fake:
        fake.add_price("price_month", interval="month", unit_amount=2000)
        monkeypatch.setenv("ENVIRONMENT", "local")
        monkeypatch.setenv("DATABASE_URL", database)
        monkeypatch.setenv("STRIPE_API_BASE", fake.base_url)
        monkeypatch.setenv("STRIPE_SECRET_KEY", TEST_KEY)
        yield fake


def sign_up(fake: FakeStripe, database: str) -> str:
    """Return the customer of a new subscriber whose events are not delivered."""
    with pyapp.connect(database) as conn:
        user = users.create_user(conn, email="ada@example.com")
        plans.add_plan_price(conn, plan_id="paid", stripe_price_id="price_month")
    client = fake.client()
    customer = client.v1.customers.create({"metadata": {"user_id": str(user.id)}})
    subscribe(client, customer=customer.id)
    return customer.id


def test_dry_run_reports_and_only_a_real_run_repairs(fake: FakeStripe, database: str):
    customer = sign_up(fake, database)

    for _ in range(2):
        code, out, _ = run_cli("stripe", "reconcile", "--dry-run")
        assert code == 3
        assert f"{customer}: in Stripe, not in the database" in out
        assert "missing here" in out
        assert all(len(line) <= 80 for line in out.splitlines())

    code, out, _ = run_cli("stripe", "reconcile")
    assert code == 0
    assert "1 customer, 1 subscription" in out
    code, out, _ = run_cli("stripe", "reconcile", "--dry-run")
    assert (code, out) == (0, "no differences: 1 customer, 1 subscription\n")
    with pyapp.connect(database) as conn:
        user = users.find_user_by_email(conn, email="ada@example.com")
        assert user is not None
        assert user.stripe_customer_id == customer
        assert user.subscription_active


def test_missing_or_live_key_is_refused_and_never_shown(
    fake: FakeStripe, monkeypatch: pytest.MonkeyPatch
):
    for key, reason in (("", "is not set"), ("sk_live_secret", "is a live key")):
        monkeypatch.setenv("STRIPE_SECRET_KEY", key)
        code, out, err = run_cli("stripe", "reconcile")
        assert code == 1
        assert reason in err
        assert "sk_live_secret" not in out + err


def test_repeated_run_survives_an_outage_but_not_a_failed_start(
    fake: FakeStripe, database: str, monkeypatch: pytest.MonkeyPatch
):
    sign_up(fake, database)
    faults = itertools.chain([{}, {"status": 401}, {}], itertools.repeat(None))

    def wait(seconds: float) -> None:
        """Skip the pause; make Stripe refuse during one, and interrupt the last."""
        assert seconds == 3600
        fault = next(faults)
        if fault is None:
            raise KeyboardInterrupt
        if fault:
            fake.faults.add("error", **fault)

    monkeypatch.setattr(repeating, "sleep", wait)
    code, out, err = run_cli("stripe", "reconcile", "--every", "1h")
    assert code == 130
    errors = [line for line in err.splitlines() if "next attempt in 1h" in line]
    assert len(errors) == 1
    assert out.count("no differences: 1 customer, 1 subscription") == 2

    fake.faults.add("error", status=401)
    code, _, err = run_cli("stripe", "reconcile", "--every", "1h")
    assert (code, "next attempt" in err) == (1, False)


@pytest.mark.parametrize("interval", ["soon", "0s", "1"])
def test_invalid_interval_is_refused(fake: FakeStripe, interval: str):
    code, _, err = run_cli("stripe", "reconcile", "--every", interval)
    assert code == 2
    assert "such as 1h" in err or "90s" in err


@pytest.fixture
def odd(fake: FakeStripe, database: str, monkeypatch: pytest.MonkeyPatch) -> FakeStripe:
    """Let the command see ten accounts, and refuse two customers."""
    fake.seed_accounts(10, prices=("price_month",))
    fake.advance(seconds=2)
    with pyapp.connect(database) as conn:
        plans.add_plan_price(conn, plan_id="paid", stripe_price_id="price_month")
        for number in range(10):
            conn.execute(
                "INSERT INTO app.users (id, email) VALUES (%s, %s)",
                [seeded_user_id(number), f"seed{number}@example.com"],
            )
    changes = {customer(7): setting(metadata=7), customer(8): replaced_by(None)}
    monkeypatch.setattr(
        "pyapp.cli.stripe.make_client", lambda _: OddClient(fake.client(), changes)
    )
    return fake


def test_run_that_ends_with_an_error_lists_what_it_has_found(odd: FakeStripe):
    """The run that resumes it does not report it again."""
    odd.faults.add("error", path="/v1/subscriptions", status=403)
    code, out, err = run_cli("stripe", "reconcile")
    assert (code, "PermissionError" in err) == (1, True)
    assert f"{customer(6)}: in Stripe, not in the database\n" in out
    assert f"{customer(7)}  metadata is not an object" in out
    code, out, _ = run_cli("stripe", "reconcile")
    assert code == 1
    assert customer(7) not in out
    assert "refused: 2 (2 unreadable)" in out


def test_command_lists_refusals_in_a_table(odd: FakeStripe):
    for arguments in (["--dry-run"], [], []):
        code, out, err = run_cli("stripe", "reconcile", *arguments)
        assert (code, err) == (1, "")
        table = out[out.index("refused ") :].splitlines()
        assert [re.split("  +", line) for line in table] == [
            ["refused", "reason"],
            [
                "(not an object)",
                "it is missing or null; listed after cus_Seed0000000009",
            ],
            [customer(7), "metadata is not an object"],
            ["refused: 2 (2 unreadable)"],
            ["compared: 10 customers, 10 subscriptions"],
        ]


def test_reason_is_cut_to_the_width_of_a_terminal(
    odd: FakeStripe, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        "pyapp.cli.console.console",
        Console(force_terminal=True, width=60, color_system=None),
    )
    out = run_cli("stripe", "reconcile")[1]
    lines = out[out.index("refused ") :].splitlines()
    assert lines[1].endswith("\N{HORIZONTAL ELLIPSIS}")
    assert {len(line) <= 60 for line in lines} == {True}


def test_command_prints_one_json_object_a_line(odd: FakeStripe, database: str):
    run_cli("stripe", "reconcile")
    with pyapp.connect(database) as conn:
        conn.execute("UPDATE app.users SET base_quota = 7 WHERE email LIKE 'seed0@%'")
    code, out, err = run_cli("stripe", "reconcile", "--dry-run", "--json")
    assert (code, err) == (1, "")
    *lines, totals = map(json.loads, out.splitlines())
    assert sorted(lines, key=lambda line: line["object_id"]) == [
        {
            "record": "refused",
            "object_type": "customers",
            "object_id": "(not an object)",
            "kind": "unreadable",
            "reason": "it is missing or null; listed after cus_Seed0000000009",
        },
        {
            "record": "difference",
            "kind": "price",
            "object_id": str(seeded_user_id(0)),
            "user_id": str(seeded_user_id(0)),
            "is_repaired": False,
        },
        {
            "record": "refused",
            "object_type": "customers",
            "object_id": customer(7),
            "kind": "unreadable",
            "reason": "metadata is not an object",
        },
    ]
    assert totals.pop("run_id") > 0
    assert totals.pop("found")["price"] == 1
    assert totals.pop("repaired")["price"] == 0
    assert totals == {
        "record": "totals",
        "is_dry_run": True,
        "is_resumed": False,
        "seen": {"customers": 10, "subscriptions": 10},
        "refused": {
            "unreadable": 2,
            "constraint": 0,
            "value": 0,
            "locked": 0,
            "fetch": 0,
            "other": 0,
        },
    }
