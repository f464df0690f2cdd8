"""Stripe stays the truth: webhooks, replay and reconciliation keep the mirror so."""

from pyapp.stripe_sync.api import make_client
from pyapp.stripe_sync.inbox import Outcome
from pyapp.stripe_sync.webhooks import handle_webhook

__all__ = [
    "Outcome",
    "handle_webhook",
    "make_client",
]
