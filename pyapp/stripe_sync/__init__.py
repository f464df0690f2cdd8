"""Stripe stays the truth: webhooks, replay and reconciliation keep the mirror so."""

from pyapp.stripe_sync.client import make_client
from pyapp.stripe_sync.differences import Difference, Failure, Progress, Reconciliation
from pyapp.stripe_sync.inbox import Outcome
from pyapp.stripe_sync.reconcile import reconcile
from pyapp.stripe_sync.replay import Replay, replay_events
from pyapp.stripe_sync.webhooks import handle_webhook

__all__ = [
    "Difference",
    "Failure",
    "Outcome",
    "Progress",
    "Reconciliation",
    "Replay",
    "handle_webhook",
    "make_client",
    "reconcile",
    "replay_events",
]
