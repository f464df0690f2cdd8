"""Every query function on a `psycopg.AsyncConnection`.

The same names, parameters, rows and errors as in `pyapp`, from the same SQL.
"""

from pyapp.aio import (
    fingerprints,
    messages,
    plans,
    quota,
    referrals,
    sessions,
    users,
)

__all__ = [
    "fingerprints",
    "messages",
    "plans",
    "quota",
    "referrals",
    "sessions",
    "users",
]
