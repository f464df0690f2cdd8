"""Keep users in sync with Stripe: webhooks, replay and reconciliation."""

from pyapp.stripe_sync.apply import Outcome
from pyapp.stripe_sync.client import make_client
from pyapp.stripe_sync.reconcile import (
    Difference,
    Failure,
    Reconciliation,
    reconcile,
)
from pyapp.stripe_sync.replay import Replay, replay_events, retry_failed_events
from pyapp.stripe_sync.runs import Progress
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
    "retry_failed_events",
]
