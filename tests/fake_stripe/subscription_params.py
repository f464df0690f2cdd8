"""Reads the parameters of creating and updating a subscription."""

from dataclasses import dataclass, replace

from . import billing
from .call import Call
from .catalog import recurring_price
from .clock import DAY
from .errors import invalid
from .model import Item, Price, Subscription
from .params import Params

_IGNORED = (
    "automatic_tax",
    "billing_mode",
    "currency",
    "off_session",
    "payment_settings",
    "proration_date",
)


def read_item(call: Call, entry: Params, anchor: int) -> Item:
    price = recurring_price(call, entry.require("price"), "items[0][price]")
    quantity = entry.integer("quantity")
    item = billing.new_item(
        call.world, price, 1 if quantity is None else quantity, anchor
    )
    item.metadata = entry.merge_metadata({})
    entry.done()
    return item


def read_common(call: Call, subscription: Subscription) -> None:
    params, now = call.params, call.world.now
    subscription.metadata = params.merge_metadata(subscription.metadata)
    for name, field in (
        ("description", "description"),
        ("default_payment_method", "payment_method"),
    ):
        if name in params:
            setattr(subscription, field, params.text(name))
    params.ignore(*_IGNORED, "proration_behavior", "days_until_due")
    if method := collection_method(params):
        subscription.collection_method = method
    behavior = params.nested("trial_settings").nested("end_behavior")
    missing_method = behavior.choice(
        "missing_payment_method", "cancel", "create_invoice", "pause"
    )
    subscription.missing_payment_method = (
        missing_method or subscription.missing_payment_method
    )
    if "cancel_at" in params:
        subscription.cancel_at = params.integer("cancel_at")
        subscription.canceled_at = now if subscription.cancel_at else None
    if (at_end := params.boolean("cancel_at_period_end")) is not None:
        subscription.cancel_at_period_end = at_end
        subscription.cancel_at = subscription.period_end if at_end else None
        subscription.canceled_at = now if at_end else None
        reason = "cancellation_requested" if at_end else None
        subscription.cancellation_reason = reason
    if "pause_collection" in params:
        collection = params.nested("pause_collection")
        kind = collection.choice(
            "behavior", "keep_as_draft", "mark_uncollectible", "void"
        )
        resumes_at = collection.integer("resumes_at")
        pause = {"behavior": kind, "resumes_at": resumes_at}
        subscription.pause_collection = pause if kind else None
    details = params.nested("cancellation_details")
    details.ignore("comment", "feedback", "feedback_option")
    details.done()


def collection_method(params: Params) -> str | None:
    return params.choice("collection_method", "charge_automatically", "send_invoice")


def read_trial_end(call: Call, params: Params) -> int | None:
    now, days = call.world.now, params.integer("trial_period_days")
    if params.text("trial_end") == "now":
        return None
    moment = params.integer("trial_end")
    if moment is not None and moment <= now:
        raise invalid("trial_end", "Invalid timestamp: must be in the future")
    return now + days * DAY if days else moment


def set_trial(subscription: Subscription, now: int, trial_end: int) -> None:
    subscription.status = "trialing"
    subscription.trial_start = subscription.trial_start or now
    subscription.trial_end = subscription.anchor = trial_end
    for item in subscription.items:
        item.period_start, item.period_end = subscription.trial_start, trial_end


@dataclass(frozen=True, slots=True)
class Change:
    item: Item | None
    price: Price | None
    quantity: int | None
    removed: bool


def read_change(call: Call, subscription: Subscription, entry: Params) -> Change:
    item_id, price_id = entry.text("id"), entry.text("price")
    item = next((i for i in subscription.items if i.id == item_id), None)
    if item_id and item is None:
        raise invalid("items[0][id]", f"No such subscription item: '{item_id}'")
    price = None
    if price_id or item is None:
        price = recurring_price(call, entry.require("price"), "items[0][price]")
    change = Change(
        item, price, entry.integer("quantity"), entry.boolean("deleted") or False
    )
    entry.done()
    return change


def apply_changes(
    call: Call, subscription: Subscription, changes: list[Change]
) -> list[Item]:
    """Replace the items; items with a new interval begin a period now."""
    items, begun = list(subscription.items), []
    for change in changes:
        item, price, quantity = change.item, change.price, change.quantity
        if item is None:
            assert price is not None
            number = 1 if quantity is None else quantity
            items.append(
                billing.new_item(call.world, price, number, subscription.anchor)
            )
            continue
        place = items.index(item)
        if change.removed:
            del items[place]
            continue
        changed = items[place] = replace(
            item,
            price=price or item.price,
            quantity=item.quantity if quantity is None else quantity,
        )
        if turn(changed.price) != turn(item.price):
            begun.append(changed)
    if not items:
        raise invalid("items", "A subscription must have at least one item.")
    subscription.items = items
    return [] if subscription.status == "trialing" else begun


def turn(price: Price) -> tuple[str | None, int]:
    return price.interval, price.interval_count
