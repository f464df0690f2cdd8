"""The endpoints /v1/customers and /v1/test_helpers/test_clocks."""

from . import billing, shapes
from .call import Call
from .errors import ApiError, invalid
from .model import Customer, FrozenClock
from .params import read_page
from .shapes import Json

LONGEST_ID = 255


def create(call: Call) -> Json:
    world = call.world
    chosen = call.params.text("id")
    customer = Customer(chosen or world.new_id("cus"), world.now, call.livemode)
    _read(call, customer)
    customer.test_clock = call.params.text("test_clock")
    if customer.test_clock is not None:
        clocks = world.clocks
        clocks.get(customer.test_clock, livemode=call.livemode, param="test_clock")
    call.params.done()
    if len(customer.id) > LONGEST_ID:
        raise invalid("id", f"Invalid string: {customer.id[:20]}...")
    if world.customers.find(customer.id):
        raise ApiError(
            400,
            "Customer already exists.",
            code="resource_already_exists",
            param="id",
        )
    world.customers.add(customer)
    world.emit("customer.created", customer)
    return call.show(customer)


def retrieve(call: Call, customer_id: str) -> Json:
    customer = call.world.customers.get(customer_id, livemode=call.livemode)
    return call.show(customer)


def update(call: Call, customer_id: str) -> Json:
    customer = call.customer(customer_id)
    with call.world.updating(customer, "customer.updated"):
        _read(call, customer)
        call.params.done()
    return call.show(customer)


def _read(call: Call, customer: Customer) -> None:
    params = call.params
    for name in ("email", "name", "phone", "description"):
        if name in params:
            setattr(customer, name, params.text(name))
    customer.metadata = params.merge_metadata(customer.metadata)
    if "payment_method" in params:
        customer.payment_method = params.text("payment_method")
    settings = params.nested("invoice_settings")
    if "default_payment_method" in settings:
        customer.payment_method = settings.text("default_payment_method")
    settings.done()
    params.ignore("address", "shipping", "preferred_locales", "source", "tax_exempt")


def delete(call: Call, customer_id: str) -> Json:
    """Cancel the customer's subscriptions, and keep only its id."""
    customer = call.customer(customer_id)
    call.params.done()
    for subscription in call.world.live_subscriptions(customer_id):
        billing.end(call.world, subscription, "cancellation_requested")
    # The event contains the customer from before.
    call.world.emit("customer.deleted", customer)
    customer.deleted = True
    return shapes.deleted(customer_id, "customer")


def list_page(call: Call) -> Json:
    ask, email = read_page(call.params), call.params.text("email")
    clock = read_clock(call)
    call.params.done()

    def keep(customer: Customer) -> bool:
        return (
            not customer.deleted
            and customer.livemode == call.livemode
            and customer.test_clock == clock
            and email in (None, customer.email)
        )

    return call.listed("/v1/customers", *call.world.customers.page(ask, keep))


def create_clock(call: Call) -> Json:
    world, params = call.world, call.params
    params.require("frozen_time")
    clock = FrozenClock(
        id=world.new_id("clock", 24),
        created=world.now,
        livemode=call.livemode,
        name=params.text("name"),
        frozen_time=params.integer("frozen_time") or 0,
    )
    params.done()
    world.clocks.add(clock)
    return call.show(clock)


def retrieve_clock(call: Call, clock_id: str) -> Json:
    return call.show(call.world.clocks.get(clock_id, livemode=call.livemode))


def read_clock(call: Call) -> str | None:
    """Return the test clock whose objects a list contains; None leaves them out."""
    name = call.params.text("test_clock")
    if name is not None:
        call.world.clocks.get(name, livemode=call.livemode, param="test_clock")
    return name
