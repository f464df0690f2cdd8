"""Tells whether the API key is of the account whose objects the mirror has.

Stripe's objects do not name their account, and a restricted key may not read it. But
Stripe returns every object that an account ever had, deleted ones too. Only test data
can be cleared.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from psycopg import Connection

from pyapp.errors import OtherAccountError, StripeRequestError
from pyapp.stripe_sync import store
from pyapp.stripe_sync.client import (
    StripeApi,
    affects_all_objects,
    fetch,
    with_retries,
)
from pyapp.stripe_sync.objects import find_created
from pyapp.stripe_sync.store import KnownObject
from pyapp.stripe_sync.transactions import own_transaction

# The newest live objects of each type that are asked for, until Stripe has one.
_ASKED = 5


def require_own_account(conn: Connection[Any], client: StripeApi) -> None:
    """Refuse a client whose account has none of the newest objects of the mirror.

    Raises:
        OtherAccountError: Stripe has none of them.
        StripeRequestError: Stripe refused, or was unavailable for minutes.
    """
    with own_transaction(conn):
        known = store.list_known_objects(conn, limit=_ASKED)
    missing = []
    for one in known:
        is_there = _exists(client, one)
        if is_there:
            return
        if is_there is not None:
            missing.append(one)
    if missing:
        raise OtherAccountError(_describe(missing))


def _exists(client: StripeApi, known: KnownObject) -> bool | None:
    """Return whether Stripe has this object; None if this cannot be found out.

    An integration can choose the same id for customers of two accounts.
    """
    try:
        response = with_retries(
            lambda: fetch(client, known.object_type, known.id), client
        )
    except ValueError:
        return None  # the id cannot be requested
    except StripeRequestError as exc:
        if affects_all_objects(exc, client):
            raise
        return None
    if response is None:
        return False
    created = find_created(response.data)
    # A deleted customer is returned without it.
    return created is None or datetime.fromtimestamp(created, UTC) == known.created_at


def _describe(known: Sequence[KnownObject]) -> str:
    names = ", ".join(one.id for one in known[:2])
    more = f" and {len(known) - 2} more" if known[2:] else ""
    return (
        f"the account of STRIPE_SECRET_KEY has none of the newest objects of the"
        f" database ({names}{more}); nothing was changed. Use the key of the right"
        " account; if its test data was deleted, run: pyapp stripe reconcile --cleared"
    )
