"""The endpoint /v1/invoices."""

from . import billing
from .call import Call
from .errors import declined, invalid
from .model import Invoice
from .params import read_page
from .shapes import Json


def retrieve(call: Call, invoice_id: str) -> Json:
    return call.show(call.world.invoices.get(invoice_id, livemode=call.livemode))


def pay(call: Call, invoice_id: str) -> Json:
    world, params = call.world, call.params
    invoice = world.invoices.get(invoice_id, livemode=call.livemode)
    method = params.text("payment_method")
    params.ignore("off_session")
    params.done()
    if invoice.status != "open":
        raise invalid("id", f"Invoice is {invoice.status}, not open.")
    subscription = world.subscriptions.find(invoice.subscription)
    if subscription is not None and method is not None:
        subscription.payment_method = method
    if not billing.attempt(world, invoice):
        raise declined()
    return call.show(invoice)


def list_page(call: Call) -> Json:
    params = call.params
    ask = read_page(params)
    customer, subscription = params.text("customer"), params.text("subscription")
    status = params.choice("status", "draft", "open", "paid", "uncollectible", "void")
    params.done()

    def keep(invoice: Invoice) -> bool:
        return (
            invoice.livemode == call.livemode
            and customer in (None, invoice.customer)
            and subscription in (None, invoice.subscription)
            and status in (None, invoice.status)
        )

    return call.listed("/v1/invoices", *call.world.invoices.page(ask, keep))
