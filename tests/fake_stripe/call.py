"""A request, as handlers get it."""

from collections.abc import Sequence
from dataclasses import dataclass

from . import shapes
from .errors import invalid, missing
from .model import Customer, Record
from .params import Params
from .shapes import Json
from .world import World

_EXPANDABLE = {
    "customer": "customers",
    "subscription": "subscriptions",
    "latest_invoice": "invoices",
    "invoice": "invoices",
    "product": "products",
    "test_clock": "clocks",
}


@dataclass(frozen=True, slots=True)
class Call:
    world: World
    params: Params
    livemode: bool
    version: str

    def show(self, record: Record) -> Json:
        return self.world.render(record, self.version)

    def listed(self, url: str, records: Sequence[Record], more: bool) -> Json:
        """Return a page as a Stripe list."""
        data = [self.show(record) for record in records]
        return {"object": "list", "url": url, "has_more": more, "data": data}

    def customer(self, customer_id: str, param: str = "id") -> Customer:
        """Return a customer that is not deleted."""
        customers = self.world.customers
        customer = customers.get(customer_id, livemode=self.livemode, param=param)
        if customer.deleted:
            raise missing("customer", customer_id, param)
        return customer

    def expand(self, shape: Json, path: str) -> None:
        """Replace an id by its object, as for `expand[]=data.customer`."""
        name, _, rest = path.partition(".")
        value = shape.get(name)
        if name == "data" and isinstance(value, list):
            for element in value:
                self.expand(element, rest)
            return
        if name == "tiers" and shape.get("object") == "price":
            price = self.world.prices.find(shape["id"])
            if price is not None and price.tiers:
                shape[name] = shapes.tiers(price)
            return
        if name == "subscriptions" and shape.get("object") == "customer":
            live = list(self.world.live_subscriptions(shape["id"]))[::-1]
            url = f"/v1/customers/{shape['id']}/subscriptions"
            shape[name] = value = self.listed(url, live[:10], len(live) > 10)
        elif name in _EXPANDABLE and name in shape:
            if isinstance(value, str):
                found = getattr(self.world, _EXPANDABLE[name]).find(value)
                shape[name] = value = found and self.show(found)
        elif not isinstance(value, dict):
            raise invalid(
                "expand[0]", f"This property cannot be expanded ({name}) ({path})."
            )
        if rest and isinstance(value, dict):
            self.expand(value, rest)
