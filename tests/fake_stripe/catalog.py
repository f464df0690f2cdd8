"""The endpoints /v1/products and /v1/prices."""

from .call import Call
from .errors import invalid
from .model import Price, Product
from .params import read_page
from .shapes import Json
from .world import World


def create_product(call: Call) -> Json:
    params = call.params
    product = Product(
        id=params.text("id") or call.world.new_id("prod"),
        created=call.world.now,
        livemode=call.livemode,
        name=params.require("name"),
        description=params.text("description"),
        metadata=params.merge_metadata({}),
    )
    params.done()
    if call.world.products.find(product.id):
        raise invalid("id", "Product already exists.")
    call.world.products.add(product)
    call.world.emit("product.created", product)
    return call.show(product)


def retrieve_product(call: Call, product_id: str) -> Json:
    return call.show(call.world.products.get(product_id, livemode=call.livemode))


def list_products(call: Call) -> Json:
    ask = read_page(call.params)
    call.params.done()
    products = call.world.products
    page = products.page(ask, lambda product: product.livemode == call.livemode)
    return call.listed("/v1/products", *page)


def create_price(call: Call) -> Json:
    world, params = call.world, call.params
    recurring = params.nested("recurring")
    interval = None
    if "recurring" in params:
        recurring.require("interval")
        interval = recurring.choice("interval", "day", "week", "month", "year")
    price = Price(
        id=world.new_id("price", 24),
        created=world.now,
        livemode=call.livemode,
        currency=params.require("currency"),
        unit_amount=params.integer("unit_amount") or 0,
        interval=interval,
        interval_count=recurring.integer("interval_count") or 1,
        nickname=params.text("nickname"),
        lookup_key=params.text("lookup_key"),
        metadata=params.merge_metadata({}),
    )
    recurring.done()
    inline = params.nested("product_data")
    if "product_data" in params:
        product = Product(
            id=world.new_id("prod"),
            created=world.now,
            livemode=call.livemode,
            name=inline.require("name"),
            metadata=inline.merge_metadata({}),
        )
        world.products.add(product)
        price.product = product.id
    else:
        price.product = params.require("product")
        world.products.get(price.product, livemode=call.livemode, param="product")
    inline.done()
    params.done()
    world.prices.add(price)
    world.emit("price.created", price)
    return call.show(price)


def retrieve_price(call: Call, price_id: str) -> Json:
    return call.show(call.world.prices.get(price_id, livemode=call.livemode))


def update_price(call: Call, price_id: str) -> Json:
    price = call.world.prices.get(price_id, livemode=call.livemode)
    with call.world.updating(price, "price.updated"):
        active = call.params.boolean("active")
        price.active = price.active if active is None else active
        price.metadata = call.params.merge_metadata(price.metadata)
        if "nickname" in call.params:
            price.nickname = call.params.text("nickname")
        call.params.done()
    return call.show(price)


def list_prices(call: Call) -> Json:
    params = call.params
    ask, active = read_page(params), params.boolean("active")
    product = params.text("product")
    lookup_keys = params.texts("lookup_keys")
    kind = params.choice("type", "recurring", "one_time")
    params.done()

    def keep(price: Price) -> bool:
        return (
            price.livemode == call.livemode
            and active in (None, price.active)
            and product in (None, price.product)
            and kind in (None, "recurring" if price.interval else "one_time")
            and (not lookup_keys or price.lookup_key in lookup_keys)
        )

    return call.listed("/v1/prices", *call.world.prices.page(ask, keep))


def recurring_price(call: Call, price_id: str, param: str) -> Price:
    """Return a price that a subscription may use."""
    price = call.world.prices.get(price_id, livemode=call.livemode, param=param)
    if price.interval is None or not price.active:
        kind = "inactive" if price.interval else "set to `type=one_time`"
        raise invalid(param, f"The price specified is {kind}")
    return price


def add_price(
    world: World,
    price_id: str,
    *,
    interval: str = "month",
    interval_count: int = 1,
    unit_amount: int = 2000,
    livemode: bool = False,
) -> Price:
    """Add a price with this id, which the API does not offer; emit no event."""
    product = Product(world.new_id("prod"), world.now, livemode, price_id)
    price = Price(
        id=price_id,
        created=world.now,
        livemode=livemode,
        product=world.products.add(product).id,
        unit_amount=unit_amount,
        interval=interval,
        interval_count=interval_count,
    )
    return world.prices.add(price)
