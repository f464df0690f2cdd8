"""Renders customers, prices, products, checkout sessions and events as JSON."""

import json
from typing import Any

from .clock import DAY
from .model import CheckoutSession, Customer, Event, FrozenClock, Price, Product

Json = dict[str, Any]


def customer(c: Customer) -> Json:
    return {
        "id": c.id,
        "object": "customer",
        "address": None,
        "balance": 0,
        "created": c.created,
        "currency": None,
        "default_source": None,
        "delinquent": False,
        "description": c.description,
        "discount": None,
        "email": c.email,
        "invoice_prefix": c.id[-8:].upper(),
        "invoice_settings": {
            "custom_fields": None,
            "default_payment_method": c.payment_method,
            "footer": None,
            "rendering_options": None,
        },
        "livemode": c.livemode,
        "metadata": dict(c.metadata),
        "name": c.name,
        "phone": c.phone,
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": c.test_clock,
    }


def frozen_clock(c: FrozenClock) -> Json:
    return {
        "id": c.id,
        "object": "test_helpers.test_clock",
        "created": c.created,
        "deletes_after": c.created + 30 * DAY,
        "frozen_time": c.frozen_time,
        "livemode": c.livemode,
        "name": c.name,
        "status": "ready",
        "status_details": {},
    }


def deleted(object_id: str, object_type: str) -> Json:
    return {"id": object_id, "object": object_type, "deleted": True}


def product(p: Product) -> Json:
    return {
        "id": p.id,
        "object": "product",
        "active": p.active,
        "created": p.created,
        "default_price": None,
        "description": p.description,
        "images": [],
        "livemode": p.livemode,
        "marketing_features": [],
        "metadata": dict(p.metadata),
        "name": p.name,
        "package_dimensions": None,
        "shippable": None,
        "statement_descriptor": None,
        "tax_code": None,
        "type": "service",
        "unit_label": None,
        "updated": p.created,
        "url": None,
    }


def price(p: Price) -> Json:
    recurring = p.interval and {
        "interval": p.interval,
        "interval_count": p.interval_count,
        "meter": p.meter,
        "trial_period_days": None,
        "usage_type": "metered" if p.meter else "licensed",
    }
    return {
        "id": p.id,
        "object": "price",
        "active": p.active,
        "billing_scheme": "tiered" if p.tiers else "per_unit",
        "created": p.created,
        "currency": p.currency,
        "custom_unit_amount": None,
        "livemode": p.livemode,
        "lookup_key": p.lookup_key,
        "metadata": dict(p.metadata),
        "nickname": p.nickname,
        "product": p.product,
        "recurring": recurring,
        "tax_behavior": "unspecified",
        "tiers_mode": p.tiers_mode,
        "transform_quantity": None,
        "type": "recurring" if p.interval else "one_time",
        "unit_amount": p.unit_amount,
        "unit_amount_decimal": None if p.amount is None else f"{p.amount:f}",
    }


def tiers(p: Price) -> list[Json]:
    """Return `tiers`, which a price has only where it is expanded."""
    return [
        {
            "flat_amount": None,
            "flat_amount_decimal": None,
            "unit_amount": tier.unit_amount,
            "unit_amount_decimal": str(tier.unit_amount),
            "up_to": tier.up_to,
        }
        for tier in p.tiers
    ]


def plan(p: Price) -> Json:
    """Return a recurring price as a plan, which subscriptions still contain."""
    return {
        "id": p.id,
        "object": "plan",
        "active": p.active,
        "amount": p.unit_amount,
        "amount_decimal": None if p.amount is None else f"{p.amount:f}",
        "billing_scheme": "tiered" if p.tiers else "per_unit",
        "created": p.created,
        "currency": p.currency,
        "interval": p.interval,
        "interval_count": p.interval_count,
        "livemode": p.livemode,
        "metadata": dict(p.metadata),
        "meter": p.meter,
        "nickname": p.nickname,
        "product": p.product,
        "tiers_mode": p.tiers_mode,
        "transform_usage": None,
        "trial_period_days": None,
        "usage_type": "metered" if p.meter else "licensed",
    }


def checkout_session(s: CheckoutSession) -> Json:
    # A trial is free.
    amount = 0 if s.trial_days else sum(p.cost(number) for p, number in s.prices)
    email = s.typed_email or s.customer_email
    details = {"address": None, "name": None, "phone": None, "tax_ids": None}
    url = f"https://checkout.stripe.com/c/pay/{s.id}" if s.status == "open" else None
    return {
        "id": s.id,
        "object": "checkout.session",
        "after_expiration": None,
        "allow_promotion_codes": None,
        "amount_subtotal": amount,
        "amount_total": amount,
        "automatic_tax": {
            "enabled": False,
            "liability": None,
            "provider": None,
            "status": None,
        },
        "billing_address_collection": None,
        "cancel_url": s.cancel_url,
        "client_reference_id": s.client_reference_id,
        "client_secret": None,
        "consent": None,
        "consent_collection": None,
        "created": s.created,
        "currency": s.prices[0][0].currency if s.prices else None,
        "custom_fields": [],
        "custom_text": {
            "after_submit": None,
            "shipping_address": None,
            "submit": None,
            "terms_of_service_acceptance": None,
        },
        "customer": s.customer,
        "customer_creation": s.customer_creation,
        "customer_details": email and details | {"email": email, "tax_exempt": "none"},
        "customer_email": s.customer_email,
        "discounts": [],
        "expires_at": s.created + DAY,
        "invoice": s.invoice,
        "invoice_creation": None,
        "livemode": s.livemode,
        "locale": None,
        "metadata": dict(s.metadata),
        "mode": s.mode,
        "payment_intent": s.payment_intent,
        "payment_link": None,
        "payment_method_collection": (
            "always" if s.mode == "subscription" else "if_required"
        ),
        "payment_method_options": {},
        "payment_method_types": ["card"],
        "payment_status": s.payment_status,
        "phone_number_collection": {"enabled": False},
        "recovered_from": None,
        "setup_intent": None,
        "shipping_cost": None,
        "shipping_options": [],
        "status": s.status,
        "submit_type": None,
        "subscription": s.subscription,
        "success_url": s.success_url,
        "total_details": {
            "amount_discount": 0,
            "amount_shipping": 0,
            "amount_tax": 0,
        },
        "ui_mode": "hosted_page",
        "url": url,
    }


def event(e: Event) -> str:
    """Return compact JSON, with the `data` that was rendered at the event's time."""
    origin = {"account": e.account, "context": e.context}
    head = {
        "id": e.id,
        "object": "event",
        "api_version": e.api_version,
        "created": e.created,
        "livemode": e.livemode,
        "pending_webhooks": len(e.undelivered),
        "request": {"id": e.request_id, "idempotency_key": e.idempotency_key},
        "type": e.type,
    } | {name: value for name, value in origin.items() if value is not None}
    return to_json(head)[:-1] + f',"data":{e.data}}}'


def to_json(value: object) -> str:
    """Return compact UTF-8 JSON; encoding it again gives other bytes."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
