"""Objects that a run cannot read, compare or store: by id, kind and reason.

The error of one object does not end a run. An error that every object would have does:
Stripe or the database is unavailable, a table is locked, or the schema is not the one
that this version needs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import psycopg
from psycopg import Connection

from pyapp.errors import RuleError, StripeRequestError
from pyapp.stripe_sync.client import StripeApi, affects_all_objects, error_summary
from pyapp.stripe_sync.store import ObjectType
from pyapp.stripe_sync.transactions import (
    LOCK_ERRORS,
    limit_lock_waits,
    own_transaction,
)

RefusalKind = Literal["unreadable", "constraint", "value", "locked", "fetch", "other"]
# In the order of a report.
REFUSAL_KINDS: tuple[RefusalKind, ...] = (
    "unreadable",
    "constraint",
    "value",
    "locked",
    "fetch",
    "other",
)
# Errors from reading an unexpected object.
UNREADABLE = (
    AttributeError,
    KeyError,
    IndexError,
    OSError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)
# SQLSTATE classes of errors about one row: data, integrity, program limits, PL/pgSQL.
_ROW_ERRORS = frozenset({"22", "23", "54", "P0"})
# Where the server's source raises errors about one row that can have any SQLSTATE, and
# that of a missing privilege: RAISE, and the policies of row-level security.
_ROW_SOURCES = frozenset({"exec_stmt_raise", "ExecWithCheckOptions"})


@dataclass(frozen=True, slots=True)
class Refusal:
    """An object that could not be compared or repaired, and the reason.

    *object_id* is a customer or a subscription, or a description if its id is not
    valid. *kind* is one of REFUSAL_KINDS:

    unreadable  Stripe's object lacks a value, or has one of another type
    constraint  a constraint of the database refused it
    value       the database cannot store a value
    locked      another transaction held a lock for five seconds
    fetch       Stripe did not return the object
    other       any other error of the database, such as one raised by a trigger
    """

    object_type: ObjectType
    object_id: str
    kind: RefusalKind
    reason: str


def make_refusal(object_type: ObjectType, object_id: str, error: Exception) -> Refusal:
    """Return the refusal of an object because of *error*."""
    return Refusal(object_type, object_id, _find_kind(error), _describe(error))


def affects_one_object(
    conn: Connection[Any],
    client: StripeApi,
    error: Exception,
    apply_empty: Callable[[], object],
) -> bool:
    """Return True if other objects can succeed, so that the run goes on.

    *apply_empty* applies an object without values, which no table stores: if it meets
    the same error, every object would.
    """
    if conn.closed:
        return False
    if isinstance(error, StripeRequestError):
        return not affects_all_objects(error, client)
    if isinstance(error, (RuleError, *UNREADABLE)):
        return True
    if not isinstance(error, psycopg.Error):
        return False
    is_of_row = error.diag.source_function in _ROW_SOURCES
    if is_of_row or (error.sqlstate or "")[:2] in _ROW_ERRORS:
        return True
    try:
        with own_transaction(conn, is_kept=False):
            limit_lock_waits(conn)
            apply_empty()
    except psycopg.Error as exc:
        return not conn.closed and exc.sqlstate != error.sqlstate
    except RuleError:
        pass
    return True


def _find_kind(error: Exception) -> RefusalKind:
    if isinstance(error, UNREADABLE):
        return "unreadable"
    if isinstance(error, StripeRequestError):
        return "fetch"
    if isinstance(error, LOCK_ERRORS):
        return "locked"
    if isinstance(error, RuleError | psycopg.IntegrityError):
        return "constraint"
    if isinstance(error, psycopg.DataError):
        return "value"
    return "other"


def _describe(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    if isinstance(error, ValueError | StripeRequestError):
        return error_summary(error).partition(": ")[2]
    return error_summary(error)
