"""Helpers that change the fake by Stripe's client."""

from typing import Any

import stripe

# Stripe's test card that can be attached and is declined when charged.
DECLINED = "pm_card_chargeCustomerFail"


def make_customers(client: stripe.StripeClient, number: int) -> list[str]:
    """Create *number* customers in order; return their names."""
    names = [f"é{n}" for n in range(number)]
    for name in names:
        client.v1.customers.create({"name": name})
    return names


def subscribe(client: stripe.StripeClient, **options: Any) -> stripe.Subscription:
    """Create a subscription, by default of a new customer to `price_month`."""
    if "customer" not in options:
        options["customer"] = client.v1.customers.create({}).id
    price = options.pop("price", "price_month")
    params: Any = {"items": [{"price": price}], **options}
    return client.v1.subscriptions.create(params)


def events(client: stripe.StripeClient, *types: str) -> list[stripe.Event]:
    """Return events, of these types if given, the oldest first."""
    page = client.v1.events.list({"limit": 100, "types": list(types)})
    return list(page.auto_paging_iter())[::-1]


def period(subscription: stripe.Subscription) -> tuple[int, int]:
    """Return start and end of the first item's period."""
    item = subscription["items"].data[0]
    return item.current_period_start, item.current_period_end


def previous(event: stripe.Event) -> Any:
    """Return the event's `previous_attributes`."""
    assert event.data.previous_attributes is not None
    return event.data.previous_attributes
