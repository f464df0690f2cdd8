"""Renders subscriptions and invoices, before and since API 2025-03-31."""

from .model import Invoice, Item, Line, Subscription
from .shapes import Json, plan, price

# A subscription contains one page of its items; the others are listed by
# /v1/subscription_items.
EMBEDDED_ITEMS = 10


def subscription(s: Subscription, *, old: bool) -> Json:
    paused = s.paused_at is not None and {
        "paused": {
            "subscription": {"type": s.paused_reason},
            "transitioned_at": s.paused_at,
            "type": "subscription",
        }
    }
    shape: Json = {
        "id": s.id,
        "object": "subscription",
        "application": None,
        "application_fee_percent": None,
        "automatic_tax": {
            "disabled_reason": None,
            "enabled": False,
            "liability": None,
        },
        "billing_cycle_anchor": s.anchor,
        "billing_cycle_anchor_config": None,
        "billing_thresholds": None,
        "cancel_at": s.cancel_at,
        "cancel_at_period_end": s.cancel_at_period_end,
        "canceled_at": s.canceled_at,
        "cancellation_details": {
            "comment": None,
            "feedback": None,
            "reason": s.cancellation_reason,
        },
        "collection_method": s.collection_method,
        "created": s.created,
        "currency": s.items[0].price.currency,
        "customer": s.customer,
        "days_until_due": 30 if s.collection_method == "send_invoice" else None,
        "default_payment_method": s.payment_method,
        "default_source": None,
        "default_tax_rates": [],
        "description": s.description,
        "discounts": [],
        "ended_at": s.ended_at,
        "invoice_settings": {"account_tax_ids": None, "issuer": {"type": "self"}},
        "items": {
            "object": "list",
            "data": [item(i, s.id, old=old) for i in s.items[:EMBEDDED_ITEMS]],
            "has_more": len(s.items) > EMBEDDED_ITEMS,
            "url": f"/v1/subscription_items?subscription={s.id}",
        },
        "latest_invoice": s.latest_invoice,
        "livemode": s.livemode,
        "metadata": dict(s.metadata),
        "next_pending_invoice_item_invoice": None,
        "on_behalf_of": None,
        "pause_collection": s.pause_collection,
        "payment_settings": {
            "payment_method_options": None,
            "payment_method_types": None,
            "save_default_payment_method": "off",
        },
        "pending_invoice_item_interval": None,
        "pending_setup_intent": None,
        "pending_update": None,
        "schedule": None,
        "start_date": s.created,
        "status": s.status,
        "test_clock": s.test_clock,
        "transfer_data": None,
        "trial_end": s.trial_end,
        "trial_settings": {
            "end_behavior": {"missing_payment_method": s.missing_payment_method}
        },
        "trial_start": s.trial_start,
    }
    if old:
        shape |= {
            "current_period_start": max(item.period_start for item in s.items),
            "current_period_end": s.period_end,
            "discount": None,
            "plan": plan(s.items[0].price) if len(s.items) == 1 else None,
            "quantity": s.items[0].quantity if len(s.items) == 1 else None,
        }
    else:
        shape |= {
            "billing_mode": _billing_mode(s),
            "billing_schedules": [],
            "customer_account": None,
            "status_details": paused or None,
        }
    return shape


def _billing_mode(s: Subscription) -> Json:
    if s.billing_mode == "classic":
        return {"flexible": None, "type": "classic"}
    return {
        "flexible": {"proration_discounts": "included"},
        "type": "flexible",
        "updated_at": s.created,
    }


def item(i: Item, subscription_id: str, *, old: bool) -> Json:
    shape: Json = {
        "id": i.id,
        "object": "subscription_item",
        "billing_thresholds": None,
        "created": i.created,
        "discounts": [],
        "metadata": dict(i.metadata),
        "plan": plan(i.price),
        "price": price(i.price),
        "subscription": subscription_id,
        "tax_rates": [],
    }
    if i.quantity is not None:
        shape["quantity"] = i.quantity
    if not old:
        shape["current_period_start"] = i.period_start
        shape["current_period_end"] = i.period_end
    return shape


def invoice(i: Invoice, *, old: bool) -> Json:
    amount, paid = i.amount, i.status == "paid"
    shape: Json = {
        "id": i.id,
        "object": "invoice",
        "account_country": "US",
        "account_name": "Fake",
        "account_tax_ids": None,
        "amount_due": amount,
        "amount_paid": amount if paid else 0,
        "amount_paid_off_stripe": 0,
        "amount_remaining": 0 if paid else amount,
        "amount_shipping": 0,
        "application": None,
        "attempt_count": i.attempts,
        "attempted": i.attempts > 0,
        "auto_advance": i.status == "open" and i.next_attempt is not None,
        "automatic_tax": {
            "disabled_reason": None,
            "enabled": False,
            "liability": None,
            "provider": None,
            "status": None,
        },
        "automatically_finalizes_at": None,
        "billing_reason": i.reason,
        "collection_method": "charge_automatically",
        "created": i.created,
        "currency": i.lines[0].price.currency,
        "custom_fields": None,
        "customer": i.customer,
        "customer_address": None,
        "customer_email": i.customer_email,
        "customer_name": None,
        "customer_phone": None,
        "customer_shipping": None,
        "customer_tax_exempt": "none",
        "customer_tax_ids": [],
        "default_payment_method": None,
        "default_source": None,
        "default_tax_rates": [],
        "description": None,
        "discounts": [],
        "due_date": None,
        "effective_at": i.finalized_at,
        "ending_balance": 0 if i.finalized_at else None,
        "footer": None,
        "from_invoice": None,
        "hosted_invoice_url": f"https://invoice.stripe.com/i/{i.id}",
        "invoice_pdf": f"https://pay.stripe.com/invoice/{i.id}/pdf",
        "issuer": {"type": "self"},
        "last_finalization_error": None,
        "latest_revision": None,
        "lines": {
            "object": "list",
            "data": [_line(line, i, old=old) for line in i.lines],
            "has_more": False,
            "url": f"/v1/invoices/{i.id}/lines",
        },
        "livemode": i.livemode,
        "metadata": {},
        "next_payment_attempt": i.next_attempt,
        "number": i.number,
        "on_behalf_of": None,
        "payment_settings": {
            "default_mandate": None,
            "payment_method_options": None,
            "payment_method_types": None,
        },
        "period_end": max(line.start for line in i.lines),
        "period_start": min(line.start for line in i.lines),
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
        "receipt_number": None,
        "rendering": None,
        "shipping_cost": None,
        "shipping_details": None,
        "starting_balance": 0,
        "statement_descriptor": None,
        "status": i.status,
        "status_transitions": {
            "finalized_at": i.finalized_at,
            "marked_uncollectible_at": i.uncollectible_at,
            "paid_at": i.paid_at,
            "voided_at": i.voided_at,
        },
        "subtotal": amount,
        "subtotal_excluding_tax": amount,
        "test_clock": i.test_clock,
        "total": amount,
        "total_discount_amounts": [],
        "total_excluding_tax": amount,
        "total_pretax_credit_amounts": [],
        "webhooks_delivered_at": None,
    }
    details = {"metadata": {}, "subscription": i.subscription}
    if old:
        shape |= {
            "charge": None,
            "discount": None,
            "paid": paid,
            "paid_out_of_band": False,
            "payment_intent": None,
            "quote": None,
            "subscription": i.subscription,
            "subscription_details": {"metadata": {}},
            "tax": None,
            "total_tax_amounts": [],
        }
    else:
        shape |= {
            "amount_overpaid": 0,
            "customer_account": None,
            "parent": {
                "quote_details": None,
                "subscription_details": details,
                "type": "subscription_details",
            },
            "total_taxes": [],
        }
    return shape


def _line(line: Line, i: Invoice, *, old: bool) -> Json:
    shape: Json = {
        "id": line.id,
        "object": "line_item",
        "amount": line.amount,
        "currency": line.price.currency,
        "description": f"{line.quantity or 0} x {line.price.id}",
        "discount_amounts": [],
        "discountable": True,
        "discounts": [],
        "invoice": i.id,
        "livemode": i.livemode,
        "metadata": {},
        "period": {"end": line.end, "start": line.start},
        "pretax_credit_amounts": [],
        "quantity": line.quantity or 0,
        "subscription": i.subscription,
    }
    if old:
        return shape | {
            "plan": plan(line.price),
            "price": price(line.price),
            "proration": False,
            "subscription_item": line.item,
            "tax_amounts": [],
            "type": "subscription",
        }
    return shape | {
        "parent": {
            "invoice_item_details": None,
            "subscription_item_details": {
                "invoice_item": None,
                "proration": False,
                "proration_details": {"credited_items": None},
                "subscription": i.subscription,
                "subscription_item": line.item,
            },
            "type": "subscription_item_details",
        },
        "pricing": {
            "price_details": {
                "price": line.price.id,
                "product": line.price.product,
            },
            "type": "price_details",
            "unit_amount_decimal": price(line.price)["unit_amount_decimal"],
        },
        "quantity_decimal": str(line.quantity or 0),
        "subtotal": line.amount,
        "taxes": [],
    }
