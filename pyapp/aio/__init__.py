"""Every query function on a `psycopg.AsyncConnection`.

The same names, parameters, rows and errors as in `pyapp`, from the same SQL.
"""

from pyapp.aio import (
    entitlements,
    fingerprints,
    messages,
    plans,
    prices,
    quota,
    referrals,
    sessions,
    stats,
    usage,
    users,
)
from pyapp.aio.connection import connect, pool

__all__ = [
    "connect",
    "entitlements",
    "fingerprints",
    "messages",
    "plans",
    "pool",
    "prices",
    "quota",
    "referrals",
    "sessions",
    "stats",
    "usage",
    "users",
]
