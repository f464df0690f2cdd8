"""Bills, renews, retries and ends subscriptions, as Stripe does by itself."""

from collections.abc import Iterable
from functools import partial

from .clock import DAY, next_boundary
from .errors import declined
from .model import Invoice, Item, Line, Price, Subscription
from .world import World

# Days from each failed attempt to the next; after the last, there is none.
RETRY_DAYS = (3, 5, 7)
INCOMPLETE_FOR = 23 * 3600


def pays(world: World, subscription: Subscription) -> bool:
    """Return False for Stripe's test cards that are declined."""
    customer = world.customers.find(subscription.customer)
    method = subscription.payment_method or (customer and customer.payment_method)
    return not (method or "").startswith(("pm_card_chargeDeclined", "pm_card_chargeCu"))


def new_item(world: World, price: Price, quantity: int | None, anchor: int) -> Item:
    """Return an item with a period from now to the next boundary of *anchor*."""
    item = Item(world.new_id("si"), world.now, price, world.now, 0, quantity)
    start_period(item, anchor, world.now)
    return item


def start_period(item: Item, anchor: int, start: int) -> None:
    price = item.price
    item.period_start = start
    item.period_end = next_boundary(
        anchor, price.interval or "month", price.interval_count, start
    )


def start(
    world: World,
    subscription: Subscription,
    *,
    behavior: str = "allow_incomplete",
    announce_incomplete: bool = False,
) -> Invoice:
    """Emit a new subscription, charge it, and schedule its renewal.

    With *announce_incomplete*, it is created incomplete and becomes active in the same
    second, as by Checkout.
    """
    trial = subscription.trial_end is not None
    free = trial or not sum(i.price.cost(i.quantity) for i in subscription.items)
    by_card = subscription.collection_method == "charge_automatically" and not free
    charged = by_card and behavior != "default_incomplete"
    paid = charged and pays(world, subscription)
    if behavior == "error_if_incomplete" and by_card and not paid:
        raise declined()
    if trial:
        subscription.status = "trialing"
    elif by_card and (announce_incomplete or not paid):
        subscription.status = "incomplete"
    world.add_subscription(subscription)
    invoice = draft(world, subscription, subscription.items, "subscription_create")
    world.emit("customer.subscription.created", subscription)
    finalize(world, invoice)
    if free:
        settle(world, invoice)
    elif charged:
        attempt(world, invoice)
    if subscription.status == "incomplete":
        world.at(world.now + INCOMPLETE_FOR, partial(expire, world, subscription))
    if trial and subscription.trial_end is not None:
        warn_at = max(world.now, subscription.trial_end - 3 * DAY)
        world.at(warn_at, partial(trial_will_end, world, subscription))
    schedule(world, subscription)
    return invoice


def schedule(world: World, subscription: Subscription) -> None:
    """Renew at the period's end, cancel at `cancel_at`, collect from `resumes_at`."""
    world.at(subscription.period_end, partial(renew, world, subscription))
    if subscription.cancel_at is not None:
        world.at(subscription.cancel_at, partial(cancel_due, world, subscription))
    pause = subscription.pause_collection
    if pause is not None and pause["resumes_at"] is not None:
        world.at(pause["resumes_at"], partial(collect_again, world, subscription))


def draft(
    world: World,
    subscription: Subscription,
    items: Iterable[Item],
    reason: str,
) -> Invoice:
    """Return a new invoice for *items*; its amount is 0 in a trial."""
    trialing = subscription.status == "trialing"
    lines = [
        Line(
            id=world.new_id("il"),
            item=item.id,
            price=item.price,
            quantity=item.quantity,
            amount=0 if trialing else item.price.cost(item.quantity),
            start=item.period_start,
            end=item.period_end,
        )
        for item in items
    ]
    customer = world.customers.find(subscription.customer)
    invoice = Invoice(
        id=world.new_id("in", 24),
        created=world.now,
        livemode=subscription.livemode,
        customer=subscription.customer,
        subscription=subscription.id,
        reason=reason,
        lines=lines,
        customer_email=customer.email if customer else None,
        test_clock=subscription.test_clock,
    )
    world.invoices.add(invoice)
    subscription.latest_invoice = invoice.id
    world.emit("invoice.created", invoice)
    return invoice


def finalize(world: World, invoice: Invoice) -> None:
    invoice.status = "open"
    invoice.finalized_at = world.now
    invoice.number = f"FAKE-{len(world.invoices):04d}"
    world.emit("invoice.finalized", invoice)


def settle(world: World, invoice: Invoice) -> None:
    """Mark the invoice as paid, and its subscription as active."""
    invoice.status = "paid"
    invoice.paid_at = world.now
    invoice.attempts += 1
    invoice.next_attempt = None
    world.emit("invoice.paid", invoice)
    world.emit("invoice.payment_succeeded", invoice)
    subscription = world.subscriptions.find(invoice.subscription)
    if subscription and subscription.status in ("incomplete", "past_due", "unpaid"):
        with world.updating(subscription, "customer.subscription.updated"):
            subscription.status = "active"


def attempt(world: World, invoice: Invoice) -> bool:
    """Charge the invoice; after a failure, the subscription is past due."""
    subscription = world.subscriptions.find(invoice.subscription)
    if subscription is None or subscription.ended or invoice.status != "open":
        return False
    if not invoice.amount or pays(world, subscription):
        settle(world, invoice)
        return True
    invoice.attempts += 1
    retry = invoice.attempts - 1
    waiting = subscription.status == "incomplete"
    if waiting or retry >= len(RETRY_DAYS):
        invoice.next_attempt = None
    else:
        invoice.next_attempt = world.now + RETRY_DAYS[retry] * DAY
        again = partial(retry_at, world, invoice, invoice.next_attempt)
        world.at(invoice.next_attempt, again)
    world.emit("invoice.payment_failed", invoice)
    if waiting:
        return False
    if invoice.next_attempt is None and world.after_failed_payments == "canceled":
        end(world, subscription, "payment_failed")
        return False
    with world.updating(subscription, "customer.subscription.updated"):
        given_up = invoice.next_attempt is None
        subscription.status = world.after_failed_payments if given_up else "past_due"
    return False


def retry_at(world: World, invoice: Invoice, moment: int) -> None:
    if invoice.next_attempt == moment:
        attempt(world, invoice)


def charge(
    world: World, subscription: Subscription, items: list[Item], reason: str
) -> None:
    """Invoice *items*, and collect unless collection is paused."""
    invoice = draft(world, subscription, items, reason)
    pause = subscription.pause_collection
    if pause is not None and pause["behavior"] == "keep_as_draft":
        return
    finalize(world, invoice)
    if pause is not None:
        _give_up(world, invoice, pause["behavior"])
        return
    if subscription.collection_method == "charge_automatically":
        attempt(world, invoice)


def _give_up(world: World, invoice: Invoice, behavior: str) -> None:
    """Void the invoice, or mark it as uncollectible."""
    if behavior == "void":
        invoice.status, invoice.voided_at = "void", world.now
        world.emit("invoice.voided", invoice)
    else:
        invoice.status, invoice.uncollectible_at = "uncollectible", world.now
        world.emit("invoice.marked_uncollectible", invoice)


def collect_again(world: World, subscription: Subscription) -> None:
    """End the pause of the payment collection if it is due."""
    pause = subscription.pause_collection
    if subscription.ended or pause is None or pause["resumes_at"] is None:
        return
    if pause["resumes_at"] <= world.now:
        with world.updating(subscription, "customer.subscription.updated"):
            subscription.pause_collection = None


def renew(world: World, subscription: Subscription) -> None:
    """Begin the next period, or end the subscription."""
    due = [item for item in subscription.items if item.period_end <= world.now]
    if not due or subscription.ended or subscription.status in ("paused", "incomplete"):
        return
    # A cancellation at the end of the period comes before the renewal.
    if subscription.cancel_at is not None and subscription.cancel_at <= world.now:
        end(world, subscription, "cancellation_requested")
        return
    trial_over = subscription.status == "trialing"
    if trial_over and not has_method(world, subscription):
        if subscription.missing_payment_method == "pause":
            pause(world, subscription, "trial_end_without_payment_method")
            return
        if subscription.missing_payment_method == "cancel":
            end(world, subscription, None)
            return
    with world.updating(subscription, "customer.subscription.updated"):
        if trial_over:
            subscription.status = "active"
        for item in due:
            start_period(item, subscription.anchor, item.period_end)
    charge(world, subscription, due, "subscription_cycle")
    if not subscription.ended:
        world.at(subscription.period_end, partial(renew, world, subscription))


def has_method(world: World, subscription: Subscription) -> bool:
    customer = world.customers.find(subscription.customer)
    return bool(subscription.payment_method or (customer and customer.payment_method))


def pause(world: World, subscription: Subscription, reason: str) -> None:
    subscription.status = "paused"
    subscription.paused_at = world.now
    subscription.paused_reason = reason
    world.emit("customer.subscription.paused", subscription)


def end(world: World, subscription: Subscription, reason: str | None) -> None:
    """Cancel the subscription now."""
    subscription.status = "canceled"
    subscription.canceled_at = subscription.canceled_at or world.now
    subscription.ended_at = world.now
    subscription.cancellation_reason = subscription.cancellation_reason or reason
    world.emit("customer.subscription.deleted", subscription)


def expire(world: World, subscription: Subscription) -> None:
    if subscription.status == "incomplete":
        with world.updating(subscription, "customer.subscription.updated"):
            subscription.status = "incomplete_expired"
            subscription.ended_at = world.now


def cancel_due(world: World, subscription: Subscription) -> None:
    moment = subscription.cancel_at
    if not subscription.ended and moment is not None and moment <= world.now:
        end(world, subscription, "cancellation_requested")


def trial_will_end(world: World, subscription: Subscription) -> None:
    if subscription.status == "trialing":
        world.emit("customer.subscription.trial_will_end", subscription)
