"""A fake Stripe: an HTTP server for Stripe's own Python client.

    with FakeStripe(seed=1) as fake:
        customer = fake.client().v1.customers.create({"email": "a@example.com"})
        delivery = fake.deliveries.take()

It has customers, test clocks, products, prices, subscriptions with their items,
invoices, checkout sessions and events, bills by a clock that a test moves, and fails on
demand; the same seed gives the same ids and faults. Its replies follow Stripe's OpenAPI
schema, which tests/test_fake_stripe_schema.py proves.

The package localstripe is another fake. It lacks what the tests of `pyapp.stripe_sync`
need most: events of the same second, and faults of the API and of deliveries on demand.
"""

from .deliveries import Delivery, DeliveryFaults, Endpoint, sign
from .errors import ApiError
from .fake import TEST_KEY, TEST_SECRET, FakeStripe
from .faults import Fault
from .seed import seeded_user_id

__all__ = [
    "TEST_KEY",
    "TEST_SECRET",
    "ApiError",
    "Delivery",
    "DeliveryFaults",
    "Endpoint",
    "FakeStripe",
    "Fault",
    "seeded_user_id",
    "sign",
]
