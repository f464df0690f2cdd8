"""Parameters for planning each query: for the busiest user and a common one."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import product
from typing import Any, get_args
from uuid import UUID, uuid4

from psycopg.types.json import Jsonb

from pyapp._core.queries import Query
from pyapp.usage import UsageKey

NOW = datetime.now(UTC)
MIDNIGHT = NOW.replace(hour=0, minute=0, second=0, microsecond=0)


def make_id(kind: str, number: int) -> UUID:
    """Return the id of the user, fingerprint or message with this number."""
    name = f"{kind}-{number}".encode()
    return UUID(hashlib.md5(name, usedforsecurity=False).hexdigest())


def make_hash(number: int) -> bytes:
    """Return the hash of the token with this number."""
    return hashlib.sha256(f"token-{number}".encode()).digest()


def values_for(query: Query) -> list[Mapping[str, Any]]:
    """Return the parameters of *query*, once for each of the two users.

    A query whose parameters select the table to read is planned for each choice.
    """
    chosen: list[Mapping[str, Any]] = []
    cases = _CHOICES.get(query.name, [_SPECIAL.get(query.name, {})])
    for (user, fingerprint), special in product(((0, 0), (2999, 1500)), cases):
        values = {**_values(user, fingerprint), **special}
        unknown = [name for name in query.parameters if name not in values]
        assert not unknown, f"{query.name}: {__file__} has no value for {unknown}"
        chosen.append({name: values[name] for name in query.parameters})
    return chosen


def _values(user: int, fingerprint: int) -> dict[str, Any]:
    return {
        "after": make_id("user", 7),
        "after_id": None,
        "api_version": "2026-10-28",
        "as_of": NOW,
        "at": NOW,
        "before": NOW - timedelta(days=10),
        "before_id": make_id("message", 7),
        "by": "day",
        "cache_creation_1h_input_tokens": 1,
        "cache_creation_1h_price": Decimal("6"),
        "cache_creation_input_tokens": 1,
        "cache_creation_price": Decimal("3.75"),
        "cache_read_input_tokens": 1,
        "cache_read_price": Decimal("0.3"),
        "can_fetch": False,
        "client_id": "client-8",
        "client_request_id": "request-800",
        "cost": Decimal("0.01"),
        "counts": Jsonb({}),
        "credits": Decimal(500),
        "cursor": "cus_1",
        "day": (MIDNIGHT - timedelta(hours=228)).date(),
        "email": f"user{user}@example.com",
        "ends_at": MIDNIGHT,
        "event_created_at": NOW,
        "fingerprint_id": make_id("fingerprint", fingerprint),
        "finished_at": NOW,
        "id": "evt_7",
        "ids": ["evt_1", "evt_2", "evt_3"],
        "input_price": Decimal(3),
        "input_tokens": 1,
        "is_daily": True,
        "is_dry_run": False,
        "is_standard": True,
        "kind": "reconcile",
        "last_error": "it failed",
        "latency_ms": 1,
        "limit": 50,
        "listed_ids": ["cus_1", "cus_2"],
        "lock_key": "cus_1",
        "lock_milliseconds": 250,
        "margin": Decimal("0.2"),
        "match_email": True,
        "message_id": make_id("message", 7),
        "milliseconds": 10_000,
        "model": "model-1",
        "monthly_credits": Decimal(500),
        "name": "Ada",
        "image_url": None,
        "object_type": "customers",
        "other_cost": Decimal(0),
        "outcome": "completed",
        "output_price": Decimal(15),
        "output_tokens": 1,
        "payload": Jsonb({}),
        "plan_id": "plan-7",
        "provider": "provider-1",
        "published_cost": Decimal("0.01"),
        "published_reason": None,
        "referral_code": f"ref-{make_id('user', 1500)}",
        "referred_id": make_id("user", 1400),
        "request": Jsonb([{"role": "user"}]),
        "response": None,
        "sig_hash": "x",
        "since": NOW - timedelta(days=10),
        "source": "event",
        "started_after": NOW - timedelta(days=1),
        "starts_at": MIDNIGHT - timedelta(days=1),
        "statement_milliseconds": 4500,
        "status": "applied",
        "stripe_price_id": "price_7",
        "subscription_id": "sub_4",
        "subject_id": make_id("user", user),
        "token_hash": make_hash(7),
        "ttl": timedelta(days=1),
        "type": "customer.updated",
        "until": NOW,
        "valid_from": NOW,
        "user_id": make_id("user", user),
        "user_ids": [make_id("user", 4), make_id("user", 8)],
        "snapshot": None,
        "snapshots": None,
    }


_CUSTOMER = {
    "id": "cus_4",
    "email": "user4@example.com",
    "is_deleted": False,
    "as_of": "2100-01-01T00:00:00+00:00",
}
_SUBSCRIPTION = {
    "id": "sub_4",
    "customer_id": "cus_4",
    "status": "active",
    "claimed_user_id": str(make_id("user", 5)),
    "items": [{"id": "si_8", "price_id": "price_8", "quantity": 1}],
    "cancel_at_period_end": False,
    "created_at": "2026-01-01T00:00:00+00:00",
    "as_of": "2100-01-01T00:00:00+00:00",
}

# Values of parameters that have another meaning in one query.
_SPECIAL: dict[str, dict[str, Any]] = {
    "complete_referral": {"referred_id": make_id("user", 5901)},
    "claim_customer": {
        "id": "cus_5",
        "user_id": make_id("user", 5),
        "source": "checkout",
    },
    "create_plan": {"plan_id": "plan-new"},
    "create_session": {"token_hash": make_hash(-1)},
    "create_user": {"email": "new@example.com"},
    "find_customer": {"id": "cus_4"},
    "find_subscription": {"id": "sub_4"},
    "list_used_models": {"since": NOW - timedelta(hours=1)},
    "list_failed_events": {"after": NOW - timedelta(days=10), "after_id": "evt_7"},
    "list_events": {"before_id": "evt_7"},
    "list_name_only_customers": {"after_id": "cus_1"},
    "list_unlisted_customers": {"after_id": "cus_1"},
    "list_unseen_customers": {"after_id": "cus_1"},
    "list_unlisted_subscriptions": {"after_id": "sub_1"},
    "mark_abandoned_runs": {"id": 7},
    "mark_event": {"status": "stale"},
    "mark_subscription_missing": {"id": "sub_4"},
    "mark_subscription_provisional": {"id": "sub_4"},
    # Without a cost, the own prices are read.
    "record_message": {"id": uuid4(), "cost": None},
    "set_model_price": {"valid_from": NOW + timedelta(days=1)},
    "set_user_email": {"email": "new@example.com"},
    "apply_event": {"id": "evt_new", "snapshot": Jsonb(_CUSTOMER)},
    "update_run": {"id": 7},
    "upsert_fingerprint": {"fingerprint_id": uuid4()},
    "upsert_customers": {"snapshots": Jsonb([_CUSTOMER])},
    "upsert_subscriptions": {"snapshots": Jsonb([_SUBSCRIPTION])},
}

_CHOICES: dict[str, list[dict[str, Any]]] = {
    "list_usage": [
        {"by": by, "is_daily": is_daily, **scope}
        for by in get_args(UsageKey)
        for is_daily in (False, True)
        for scope in ({}, {"subject_id": None})
    ],
}
