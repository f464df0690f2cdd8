"""The endpoint /v1/customers."""

from . import billing, shapes
from .call import Call
from .model import Customer
from .params import read_page
from .shapes import Json


def create(call: Call) -> Json:
    world = call.world
    customer = Customer(world.new_id("cus"), world.now, call.livemode)
    _read(call, customer)
    call.params.done()
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
    call.params.done()

    def keep(customer: Customer) -> bool:
        return (
            not customer.deleted
            and customer.livemode == call.livemode
            and email in (None, customer.email)
        )

    return call.listed("/v1/customers", *call.world.customers.page(ask, keep))
