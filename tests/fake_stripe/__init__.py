"""A stand-in for Stripe: an HTTP server that the real client talks to.

    with FakeStripe(seed=1) as fake:
        customer = fake.client().v1.customers.create({"email": "a@example.com"})
        delivery = fake.deliveries.take()

It keeps customers, products, prices, subscriptions, invoices, checkout sessions and
events, bills by a clock that a test moves, and is unreliable on demand, the same way
for the same seed.
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
