"""What the database's own failures mean for whoever typed a command."""

import psycopg
from psycopg import errors

_AGAIN = "run it again"
# The more special ones first: some are others, too.
_MEANINGS: tuple[tuple[type[psycopg.Error], str], ...] = (
    (
        errors.InsufficientPrivilege,
        "the user of DATABASE_URL may not do this: {reason}",
    ),
    (errors.InvalidSchemaName, "{reason}; bring the schema up by: pyapp db migrate"),
    (errors.UndefinedColumn, "{reason}; bring the schema up by: pyapp db migrate"),
    (errors.UndefinedFunction, "{reason}; bring the schema up by: pyapp db migrate"),
    (errors.UndefinedTable, "{reason}; bring the schema up by: pyapp db migrate"),
    (
        errors.DiskFull,
        "the database's disk is full ({reason}): free some space, and " + _AGAIN,
    ),
    (
        errors.LockNotAvailable,
        "others kept locked what this needs ({reason}): " + _AGAIN,
    ),
    (
        errors.QueryCanceled,
        "the database gave this up ({reason}): " + _AGAIN + " at a quieter moment",
    ),
    (errors.DeadlockDetected, "others changed the same rows ({reason}): " + _AGAIN),
    (errors.SerializationFailure, "others changed the same rows ({reason}): " + _AGAIN),
    (
        errors.ReadOnlySqlTransaction,
        "the database takes no changes ({reason}): is it a standby?",
    ),
    (
        errors.IdleInTransactionSessionTimeout,
        "the database ended the session ({reason}): " + _AGAIN,
    ),
    (psycopg.OperationalError, "the database stopped answering: {reason}"),
)


def explain(error: psycopg.Error) -> str | None:
    """Return a line that says what to do, or None for what is nobody's fault but ours.

    It quotes the first line of what the server says, which names no row.
    """
    lines = (error.diag.message_primary or str(error)).strip().splitlines()
    for kind, meaning in _MEANINGS:
        if isinstance(error, kind):
            return meaning.format(reason=lines[0] if lines else type(error).__name__)
    return None
