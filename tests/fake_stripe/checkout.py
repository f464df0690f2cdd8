"""The endpoint /v1/checkout/sessions, and the completion of a session."""

from functools import partial

from . import billing
from .call import Call
from .catalog import active_price, read_quantity
from .clock import DAY
from .errors import invalid
from .model import CheckoutSession, Customer, Price, Subscription
from .params import Params, read_page
from .shapes import Json
from .subscription_params import check_items, read_billing_mode, set_trial
from .world import World


def create(call: Call) -> Json:
    world, params = call.world, call.params
    params.require("mode")
    mode = params.choice("mode", "payment", "setup", "subscription") or ""
    prices = [_read_line(call, entry, mode) for entry in params.entries("line_items")]
    customer = params.text("customer")
    if customer is not None:
        call.customer(customer, "customer")
    purchase = params.nested("subscription_data")
    if "subscription_data" in params and mode != "subscription":
        message = f"You can not pass `subscription_data` in `{mode}` mode."
        raise invalid("subscription_data", message)
    session = CheckoutSession(
        id=world.new_id("cs_live" if call.livemode else "cs_test", 58),
        created=world.now,
        livemode=call.livemode,
        mode=mode,
        prices=prices,
        customer=customer,
        customer_creation=_read_creation(params, mode, customer),
        customer_email=params.text("customer_email"),
        client_reference_id=params.text("client_reference_id"),
        success_url=params.text("success_url"),
        cancel_url=params.text("cancel_url"),
        trial_days=purchase.integer("trial_period_days"),
        billing_mode=read_billing_mode(call, purchase),
        subscription_metadata=purchase.merge_metadata({}),
        metadata=params.merge_metadata({}),
    )
    purchase.done()
    params.ignore("payment_method_types", "allow_promotion_codes", "locale", "ui_mode")
    params.ignore("payment_method_collection", "return_url", "payment_intent_data")
    params.done()
    if mode != "setup" and not prices:
        raise invalid("line_items", "Missing required param: line_items.")
    if mode == "subscription" and not any(price.interval for price, _ in prices):
        raise invalid(
            "line_items",
            "You must provide at least one recurring price in `subscription` mode.",
        )
    world.sessions.add(session)
    world.at(session.created + DAY, partial(expire_session, world, session))
    return call.show(session)


def _read_line(call: Call, entry: Params, mode: str) -> tuple[Price, int | None]:
    price = active_price(call, entry.require("price"), "line_items[0][price]")
    if price.interval is not None and mode == "payment":
        raise invalid(
            "line_items[0][price]",
            "You specified `payment` mode but passed a recurring price.",
        )
    quantity = read_quantity(entry, price)
    entry.done()
    return price, quantity


def _read_creation(params: Params, mode: str, customer: str | None) -> str | None:
    """Return whether the session creates a customer."""
    chosen = params.choice("customer_creation", "always", "if_required")
    if customer is not None:
        return None
    return "always" if mode == "subscription" else chosen or "if_required"


def retrieve(call: Call, session_id: str) -> Json:
    return call.show(call.world.sessions.get(session_id, livemode=call.livemode))


def expire(call: Call, session_id: str) -> Json:
    session = call.world.sessions.get(session_id, livemode=call.livemode)
    call.params.done()
    if session.status != "open":
        raise invalid("id", "Only Checkout Sessions with a status of open can expire.")
    expire_session(call.world, session)
    return call.show(session)


def expire_session(world: World, session: CheckoutSession) -> None:
    if session.status == "open":
        session.status = "expired"
        world.emit("checkout.session.expired", session)


def list_page(call: Call) -> Json:
    params = call.params
    ask = read_page(params)
    customer, subscription = params.text("customer"), params.text("subscription")
    status = params.choice("status", "open", "complete", "expired")
    params.done()

    def keep(session: CheckoutSession) -> bool:
        return (
            session.livemode == call.livemode
            and customer in (None, session.customer)
            and subscription in (None, session.subscription)
            and status in (None, session.status)
        )

    return call.listed("/v1/checkout/sessions", *call.world.sessions.page(ask, keep))


def complete(
    world: World, session_id: str, email: str | None = None, *, unpaid: bool = False
) -> None:
    """Complete the session: create customer and subscription, emit the event.

    *email* is what the customer typed; it is not verified. With *unpaid*, a bank debit
    is on its way, and `finish_payment` ends it; the subscription is active already.
    """
    session = world.sessions.find(session_id)
    if session is None or session.status != "open":
        raise invalid("session", f"{session_id} is not an open session")
    customer = world.customers.find(session.customer or "")
    session.typed_email = email or session.customer_email
    if customer is not None:
        session.typed_email = session.typed_email or customer.email
    elif session.customer_creation == "always":
        customer = Customer(
            id=world.new_id("cus"),
            created=world.now,
            livemode=session.livemode,
            email=session.typed_email,
            payment_method="pm_card_visa",
        )
        world.customers.add(customer)
        world.emit("customer.created", customer)
        session.customer = customer.id
    cost = sum(price.cost(quantity) for price, quantity in session.prices)
    is_free = bool(session.trial_days) or not cost
    if session.mode == "subscription" and customer is not None:
        subscription = _subscribe(world, session, customer)
        session.subscription = subscription.id
        session.invoice = subscription.latest_invoice
    elif session.mode == "payment" and not is_free:
        session.payment_intent = world.new_id("pi", 24)
    session.status = "complete"
    paid = "unpaid" if unpaid else "paid"
    session.payment_status = "no_payment_required" if is_free else paid
    world.emit("checkout.session.completed", session)


def finish_payment(world: World, session_id: str, *, succeeded: bool) -> None:
    """Let the bank debit of a completed session succeed or fail."""
    session = world.sessions.get(session_id)
    if session.status != "complete" or session.payment_status != "unpaid":
        raise invalid("session", f"{session_id} has no payment on its way")
    if succeeded:
        session.payment_status = "paid"
        world.emit("checkout.session.async_payment_succeeded", session)
    else:
        world.emit("checkout.session.async_payment_failed", session)


def _subscribe(
    world: World, session: CheckoutSession, customer: Customer
) -> Subscription:
    now = world.now
    trial_end = now + session.trial_days * DAY if session.trial_days else None
    anchor = trial_end or now
    subscription = Subscription(
        id=world.new_id("sub", 24),
        created=now,
        livemode=session.livemode,
        customer=customer.id,
        items=[
            billing.new_item(world, price, quantity, anchor)
            for price, quantity in session.prices
            if price.interval is not None
        ],
        status="active",
        anchor=anchor,
        billing_mode=session.billing_mode,
        test_clock=customer.test_clock,
        metadata=session.subscription_metadata,
    )
    check_items(subscription.items, subscription.billing_mode)
    if trial_end is not None:
        set_trial(subscription, now, trial_end)
    billing.start(world, subscription, announce_incomplete=True)
    return subscription
