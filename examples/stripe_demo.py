"""A sample script: handle Stripe's webhooks, and repair lost ones by reconciliation.

Run it from the project's folder: `python -m examples.stripe_demo`. Stripe's client
talks to a fake Stripe over HTTP. Its ids and times depend only on when Ada became a
customer, so a second run prints the same and adds nothing.
"""

import contextlib
import os
import time
from collections import Counter

import stripe

import pyapp
from pyapp import plans, users
from pyapp.cli import main as run_command
from pyapp.stripe_sync import handle_webhook
from pyapp.users import User
from tests.fake_stripe import TEST_KEY, TEST_SECRET, FakeStripe


def find_accounts() -> tuple[User, User]:
    with pyapp.connect() as conn:
        plans.add_plan_price(conn, plan_id="paid", stripe_price_id="price_paid")
        ada = users.find_user_by_email(conn, email="ada@example.com")
        grace = users.find_user_by_email(conn, email="grace@example.com")
    if ada is None or grace is None:
        raise SystemExit("Ada or Grace is missing: run examples/demo.py first")
    return ada, grace


def begin(ada: User) -> int:
    # After the first run, created_at is the customer's creation date.
    if ada.stripe_customer_id is None:
        return int(time.time()) - 3600
    return int(ada.created_at.timestamp())


def deliver(fake: FakeStripe, client: stripe.StripeClient, step: str) -> None:
    results: Counter[str] = Counter()
    with pyapp.connect() as conn:
        while delivery := fake.deliveries.take():
            outcome = handle_webhook(
                conn, delivery.payload, delivery.signature, [TEST_SECRET], client
            )
            results[outcome.result] += 1
            delivery.succeed()
    counts = ", ".join(
        f"{number} {result}" for result, number in sorted(results.items())
    )
    print(f"{step}: deliveries {counts}")
    fake.advance(seconds=60)


def buy(client: stripe.StripeClient, customer: str, price: str) -> stripe.Subscription:
    return client.v1.subscriptions.create(
        {"customer": customer, "items": [{"price": price}]}
    )


def reconcile(*options: str) -> None:
    print("--", " ".join(["pyapp stripe reconcile", *options]), flush=True)
    # A dry run that finds differences exits with status 3.
    with contextlib.suppress(SystemExit):
        run_command(["stripe", "reconcile", *options])


def main() -> None:
    ada, grace = find_accounts()
    with FakeStripe(seed=7, start=begin(ada)) as fake:
        for price in ("price_starter", "price_paid"):
            fake.add_price(price, interval="month", unit_amount=2000)
        client = fake.client()
        customers = [
            client.v1.customers.create(
                {"email": user.email or "", "metadata": {"user_id": str(user.id)}}
            ).id
            for user in (ada, grace)
        ]
        deliver(fake, client, "Ada and Grace become customers")
        starter = buy(client, customers[0], "price_starter")
        paid = buy(client, customers[1], "price_paid")
        deliver(fake, client, "Both subscribe")
        client.v1.subscriptions.update(
            starter.id,
            {"items": [{"id": starter["items"].data[0].id, "price": "price_paid"}]},
        )
        deliver(fake, client, "Ada upgrades")
        client.v1.subscriptions.update(starter.id, {"cancel_at_period_end": True})
        client.v1.subscriptions.cancel(paid.id)
        lost = len(fake.deliveries.drop())
        fake.advance(seconds=60)
        print(f"Grace cancels, and Ada cancels at period end: deliveries {lost} lost")
        os.environ |= {
            "STRIPE_API_BASE": fake.base_url,
            "STRIPE_SECRET_KEY": TEST_KEY,
        }
        reconcile("--dry-run")
        reconcile()
        reconcile("--dry-run")


if __name__ == "__main__":
    main()
