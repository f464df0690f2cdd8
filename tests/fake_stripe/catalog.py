"""The endpoints /v1/products and /v1/prices."""

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from .call import Call
from .errors import invalid
from .model import Price, Product, Tier
from .params import Params, read_page
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
    is_metered = recurring.choice("usage_type", "licensed", "metered") == "metered"
    price = Price(
        id=world.new_id("price", 24),
        created=world.now,
        livemode=call.livemode,
        currency=params.require("currency"),
        interval=interval,
        interval_count=recurring.integer("interval_count") or 1,
        meter=recurring.require("meter") if is_metered else None,
        nickname=params.text("nickname"),
        lookup_key=params.text("lookup_key"),
        metadata=params.merge_metadata({}),
    )
    recurring.done()
    _read_amount(params, price)
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


def _read_amount(params: Params, price: Price) -> None:
    if params.choice("billing_scheme", "per_unit", "tiered") == "tiered":
        params.require("tiers_mode")
        price.tiers_mode = params.choice("tiers_mode", "graduated", "volume")
        price.tiers = tuple(_read_tier(entry) for entry in params.entries("tiers"))
        if not price.tiers or price.tiers[-1].up_to is not None:
            raise invalid("tiers", "The last tier must have `up_to` set to `inf`.")
        return
    if "unit_amount" in params and "unit_amount_decimal" in params:
        raise invalid(
            "unit_amount",
            "You may only specify one of these parameters: unit_amount, "
            "unit_amount_decimal.",
        )
    whole, text = params.integer("unit_amount"), params.text("unit_amount_decimal")
    if whole is None and text is None:
        raise invalid(
            "unit_amount",
            "Invalid price: please provide one of `unit_amount`, "
            "`unit_amount_decimal` or `custom_unit_amount`.",
        )
    try:
        price.amount = Decimal(text if whole is None else whole)  # type: ignore[arg-type]
    except InvalidOperation:
        raise invalid("unit_amount_decimal", f"Invalid decimal: {text}") from None


def _read_tier(entry: Params) -> Tier:
    last = entry.require("up_to") == "inf"
    up_to = None if last else entry.integer("up_to")
    tier = Tier(up_to, entry.integer("unit_amount") or 0)
    entry.done()
    return tier


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


def active_price(call: Call, price_id: str, param: str) -> Price:
    price = call.world.prices.get(price_id, livemode=call.livemode, param=param)
    if not price.active:
        raise invalid(param, "The price specified is inactive.")
    return price


def recurring_price(call: Call, price_id: str, param: str) -> Price:
    """Return a price that a subscription may use."""
    price = active_price(call, price_id, param)
    if price.interval is None:
        raise invalid(
            param,
            "The price specified is set to `type=one_time` but this field only accepts "
            "prices with `type=recurring`.",
        )
    return price


def read_quantity(entry: Params, price: Price, default: int | None = 1) -> int | None:
    """Return the quantity of a new item, None for a metered price."""
    quantity = entry.integer("quantity")
    if price.meter is None:
        return default if quantity is None else quantity
    if quantity is not None:
        raise invalid(
            "items[0][quantity]",
            "You cannot specify quantity when the price has usage_type=metered.",
        )
    return None


def add_price(
    world: World,
    price_id: str,
    *,
    interval: str | None = "month",
    interval_count: int = 1,
    unit_amount: int | Decimal = 2000,
    tiers: Sequence[tuple[int | None, int]] = (),
    meter: str | None = None,
    livemode: bool = False,
) -> Price:
    """Add a price with this id, which the API does not offer; emit no event.

    Without *interval* it is a one-time price, with *tiers* of (up_to, unit_amount) a
    graduated one, with *meter* a metered one.
    """
    product = Product(world.new_id("prod"), world.now, livemode, price_id)
    price = Price(
        id=price_id,
        created=world.now,
        livemode=livemode,
        product=world.products.add(product).id,
        amount=None if tiers else Decimal(unit_amount),
        tiers=tuple(Tier(*tier) for tier in tiers),
        tiers_mode="graduated" if tiers else None,
        interval=interval,
        interval_count=interval_count,
        meter=meter,
    )
    return world.prices.add(price)
