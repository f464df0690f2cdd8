"""A PostgreSQL schema for metered AI usage, with a thin Python layer over it."""

import logging
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyapp import (
        aio,
        entitlements,
        errors,
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
    from pyapp._core.config import load_settings
    from pyapp._core.connection import connect, pool

# A program that imports pyapp configures its logging.
logging.getLogger(__name__).addHandler(logging.NullHandler())

__version__ = "0.1.0"

__all__ = [
    "aio",
    "connect",
    "entitlements",
    "errors",
    "fingerprints",
    "load_settings",
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

# Hidden from type checkers, which would accept any name.
if not TYPE_CHECKING:

    def __getattr__(name):
        """Import a part at its first use; the command handles Ctrl-C before that."""
        if name in {"connect", "pool"}:
            return getattr(import_module("pyapp._core.connection"), name)
        if name == "load_settings":
            return import_module("pyapp._core.config").load_settings
        if find_spec(f"pyapp.{name}"):
            return import_module(f"pyapp.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        return sorted({*globals(), *__all__})
