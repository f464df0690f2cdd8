"""`pyapp stripe reconcile` reports differences in its output and exit status."""

import itertools
from collections.abc import Iterator

import pytest

import pyapp
from pyapp import plans, users
from pyapp.cli import stripe as command
from tests.fake_stripe import TEST_KEY, FakeStripe
from tests.fake_stripe.driving import subscribe
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
        plans.set_plan_price(conn, plan_id="paid", stripe_price_id="price_month")
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
    assert "1 customers, 1 subscriptions" in out
    code, out, _ = run_cli("stripe", "reconcile", "--dry-run")
    assert (code, out) == (0, "no differences: 1 customers, 1 subscriptions\n")
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

    monkeypatch.setattr(command, "sleep", wait)
    code, out, err = run_cli("stripe", "reconcile", "--every", "1h")
    assert code == 130
    errors = [line for line in err.splitlines() if "next attempt in 1h" in line]
    assert len(errors) == 1
    assert out.count("no differences: 1 customers, 1 subscriptions") == 2

    fake.faults.add("error", status=401)
    code, _, err = run_cli("stripe", "reconcile", "--every", "1h")
    assert (code, "next attempt" in err) == (1, False)


@pytest.mark.parametrize("interval", ["soon", "0s", "1"])
def test_invalid_interval_is_refused(fake: FakeStripe, interval: str):
    code, _, err = run_cli("stripe", "reconcile", "--every", interval)
    assert code == 2
    assert "such as 1h" in err or "90s" in err
