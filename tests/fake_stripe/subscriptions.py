"""The endpoint /v1/subscriptions."""

from . import billing
from .call import Call
from .customers import read_clock
from .errors import ApiError, invalid, missing
from .model import Item, Subscription
from .params import read_page, read_range
from .shapes import Json
from .subscription_params import (
    Change,
    apply_changes,
    check_items,
    collection_method,
    plan_end,
    read_billing_mode,
    read_cancellation,
    read_change,
    read_common,
    read_item,
    read_trial_end,
    set_trial,
)
from .world import World

_STATUSES = (
    "incomplete",
    "incomplete_expired",
    "trialing",
    "active",
    "past_due",
    "canceled",
    "unpaid",
    "paused",
)
_BEHAVIORS = (
    "allow_incomplete",
    "default_incomplete",
    "error_if_incomplete",
    "pending_if_incomplete",
)
_PRORATIONS = ("create_prorations", "none", "always_invoice")


def create(call: Call) -> Json:
    world, params = call.world, call.params
    customer = call.customer(params.require("customer"), "customer")
    trial_end = read_trial_end(call, params)
    anchor = params.integer("billing_cycle_anchor") or trial_end or world.now
    items = [read_item(call, entry, anchor) for entry in params.entries("items")]
    if not items:
        raise invalid("items", "Missing required param: items.")
    billing_mode = read_billing_mode(call, params)
    check_items(items, billing_mode)
    subscription = Subscription(
        id=world.new_id("sub", 24),
        created=world.now,
        livemode=call.livemode,
        customer=customer.id,
        items=items,
        status="active",
        anchor=anchor,
        collection_method=collection_method(params) or "charge_automatically",
        billing_mode=billing_mode,
        test_clock=customer.test_clock,
    )
    if trial_end is not None:
        set_trial(subscription, world.now, trial_end)
    behavior = params.choice("payment_behavior", *_BEHAVIORS) or "allow_incomplete"
    read_common(call, subscription)
    read_cancellation(params, subscription, world.now)
    params.done()
    billing.start(world, subscription, behavior=behavior)
    return call.show(subscription)


def retrieve(call: Call, subscription_id: str) -> Json:
    subscriptions = call.world.subscriptions
    return call.show(subscriptions.get(subscription_id, livemode=call.livemode))


def changeable(call: Call, subscription_id: str) -> Subscription:
    subscriptions = call.world.subscriptions
    subscription = subscriptions.get(subscription_id, livemode=call.livemode)
    if subscription.ended:
        raise missing("subscription", subscription_id)
    return subscription


def update(call: Call, subscription_id: str) -> Json:
    world, params = call.world, call.params
    subscription = world.subscriptions.get(subscription_id, livemode=call.livemode)
    if subscription.ended and not params.only("metadata", "cancellation_details"):
        raise ApiError(
            400,
            "A canceled subscription can only update its cancellation_details and "
            "metadata.",
        )
    params.choice("payment_behavior", *_BEHAVIORS)
    proration = params.choice("proration_behavior", *_PRORATIONS)
    # All errors in the request are found before a change.
    changes = [read_change(call, subscription, e) for e in params.entries("items")]
    ends_trial = "trial_end" in params
    trial_end = read_trial_end(call, params)
    reset = params.choice("billing_cycle_anchor", "now", "unchanged") == "now"
    with world.updating(subscription, "customer.subscription.updated"):
        read_common(call, subscription)
        begun = apply_changes(call, subscription, changes)
        if ends_trial and trial_end is not None:
            set_trial(subscription, world.now, trial_end)
        elif (ends_trial and subscription.status == "trialing") or reset:
            if subscription.status == "trialing":
                subscription.status, subscription.trial_end = "active", world.now
            begun = subscription.items
        _begin_periods(world, subscription, begun)
        read_cancellation(params, subscription, world.now)
        params.done()
    _bill(world, subscription, begun, bool(changes) and proration == "always_invoice")
    return call.show(subscription)


def change_items(call: Call, subscription: Subscription, changes: list[Change]) -> None:
    """Change items by their own endpoint."""
    world, params = call.world, call.params
    params.choice("payment_behavior", *_BEHAVIORS)
    params.ignore("proration_date")
    proration = params.choice("proration_behavior", *_PRORATIONS)
    params.done()
    with world.updating(subscription, "customer.subscription.updated"):
        begun = apply_changes(call, subscription, changes)
        _begin_periods(world, subscription, begun)
        read_cancellation(params, subscription, world.now)
    _bill(world, subscription, begun, proration == "always_invoice")


def _begin_periods(world: World, subscription: Subscription, items: list[Item]) -> None:
    """Begin the periods of *items* now, which moves the anchor."""
    if items:
        subscription.anchor = world.now
    for item in items:
        billing.start_period(item, world.now, world.now)


def _bill(
    world: World, subscription: Subscription, begun: list[Item], always: bool
) -> None:
    if begun or always:
        items = begun or subscription.items
        billing.charge(world, subscription, items, "subscription_update")
    billing.schedule(world, subscription)


def cancel(call: Call, subscription_id: str) -> Json:
    subscription = changeable(call, subscription_id)
    call.params.ignore("cancellation_details", "invoice_now", "prorate")
    call.params.done()
    billing.end(call.world, subscription, "cancellation_requested")
    return call.show(subscription)


def pause(call: Call, subscription_id: str) -> Json:
    subscription = changeable(call, subscription_id)
    call.params.ignore("bill_for", "invoicing_behavior", "type")
    call.params.done()
    if subscription.status != "active":
        raise invalid("id", "Only an active subscription can be paused.")
    billing.pause(call.world, subscription, "pause_requested")
    return call.show(subscription)


def resume(call: Call, subscription_id: str) -> Json:
    """Make it active; the period begins now unless the anchor is kept."""
    world, subscription = call.world, changeable(call, subscription_id)
    if subscription.status != "paused":
        raise invalid("id", "The subscription is not paused.")
    anchor = call.params.nested("billing_cycle_anchor")
    unchanged = anchor.choice("type", "now", "unchanged") == "unchanged"
    call.params.ignore("payment_behavior", "proration_behavior", "proration_date")
    call.params.done()
    subscription.status = "active"
    subscription.paused_at = subscription.paused_reason = None
    subscription.anchor = subscription.anchor if unchanged else world.now
    begun = [
        i for i in subscription.items if not unchanged or i.period_end <= world.now
    ]
    for item in begun:
        billing.start_period(item, subscription.anchor, world.now)
    world.emit("customer.subscription.resumed", subscription)
    if begun:
        billing.charge(world, subscription, begun, "subscription_update")
    billing.schedule(world, subscription)
    return call.show(subscription)


def cancel_in_portal(world: World, subscription: Subscription) -> None:
    """Cancel at the period's end, as a customer does in the customer portal.

    With flexible billing, the portal resolves that time at once.
    """
    with world.updating(subscription, "customer.subscription.updated"):
        plan_end(subscription, subscription.period_end, world.now)
        subscription.cancel_at_period_end = subscription.billing_mode == "classic"
    billing.schedule(world, subscription)


def renew_in_portal(world: World, subscription: Subscription) -> None:
    """Revoke the cancellation."""
    with world.updating(subscription, "customer.subscription.updated"):
        plan_end(subscription, None, world.now)


def list_page(call: Call) -> Json:
    world, params = call.world, call.params
    ask = read_page(params)
    customer, price = params.text("customer"), params.text("price")
    status = params.choice("status", "all", "ended", *_STATUSES)
    since, before = read_range(params, "current_period_end")
    method = collection_method(params)
    clock = read_clock(call)
    params.done()
    places = None
    if customer is not None:
        world.customers.get(customer, livemode=call.livemode, param="customer")
        places = world.subscriptions_of.get(customer, [])

    def keep(s: Subscription) -> bool:
        return (
            s.livemode == call.livemode
            # Only lists of all customers leave out those of test clocks.
            and (s.test_clock == clock or (clock is None and places is not None))
            and _has_status(s, status)
            and (price is None or any(item.price.id == price for item in s.items))
            and method in (None, s.collection_method)
            and (since is None or since <= s.period_end)
            and (before is None or s.period_end < before)
        )

    page = world.subscriptions.page(ask, keep, places)
    return call.listed("/v1/subscriptions", *page)


def _has_status(subscription: Subscription, status: str | None) -> bool:
    if status is None:
        return subscription.status != "canceled"
    if status == "ended":
        return subscription.ended
    return status in ("all", subscription.status)
