"""Keep users in sync with Stripe: webhooks, replay and reconciliation."""

from pyapp.stripe_sync.client import make_client
from pyapp.stripe_sync.differences import Difference
from pyapp.stripe_sync.outcomes import Outcome
from pyapp.stripe_sync.reconcile import Reconciliation, reconcile
from pyapp.stripe_sync.refusals import Refusal
from pyapp.stripe_sync.replay import Replay, replay_events, retry_failed_events
from pyapp.stripe_sync.runs import Progress
from pyapp.stripe_sync.webhooks import handle_webhook

__all__ = [
    "Difference",
    "Outcome",
    "Progress",
    "Reconciliation",
    "Refusal",
    "Replay",
    "handle_webhook",
    "make_client",
    "reconcile",
    "replay_events",
    "retry_failed_events",
]
