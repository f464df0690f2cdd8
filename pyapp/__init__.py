"""A PostgreSQL schema for metered AI usage, with a thin Python layer over it."""

import logging

from pyapp import (
    aio,
    errors,
    fingerprints,
    messages,
    plans,
    quota,
    referrals,
    sessions,
    stats,
    users,
)
from pyapp.connection import connect, pool

# Whoever imports this decides what becomes of its log.
logging.getLogger(__name__).addHandler(logging.NullHandler())

__version__ = "0.1.0"

__all__ = [
    "aio",
    "connect",
    "errors",
    "fingerprints",
    "messages",
    "plans",
    "pool",
    "quota",
    "referrals",
    "sessions",
    "stats",
    "users",
]
