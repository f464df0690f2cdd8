"""The sections of `pyapp stats`: each is one query, and fails alone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import psycopg

from pyapp import stats as queries
from pyapp._core.database_url import quote_name
from pyapp._core.run import fetch_one
from pyapp.cli.privileges import ROLES

Connection = psycopg.Connection[Any]
# The sections of the answer, in their order.
QUESTIONS: dict[str, Callable[[Connection], Any]] = {
    "messages": queries.get_message_rates,
    "users": queries.get_user_counts,
    "events": queries.get_inbox_counts,
    "reconcile": partial(queries.find_last_run, kind="reconcile"),
    "replay": partial(queries.find_last_run, kind="replay"),
    "payloads": queries.get_payload_months,
    "server": queries.get_server_state,
    "tables": queries.list_table_sizes,
    "unused_indexes": queries.list_unused_indexes,
}
MILLISECONDS = 1000


@dataclass
class Answers:
    """The results of all sections.

    Those of `unanswered` took too long, or are `refused`: the login may not read them.
    `remedy` is then an administrator's GRANT, or the owner's command, that lets it.
    """

    at: datetime
    found: dict[str, Any] = field(default_factory=dict)
    unanswered: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    remedy: str | None = None


def ask_all(conn: Connection, seconds: int) -> Answers:
    """Run each query in its own short, read-only transaction."""
    conn.autocommit = True
    conn.read_only = True
    answers = Answers(datetime.now(UTC))
    for name, question in QUESTIONS.items():
        try:
            with conn.transaction():
                queries.limit_time(conn, milliseconds=seconds * MILLISECONDS)
                answers.found[name] = question(conn)
        except (
            psycopg.errors.QueryCanceled,
            psycopg.errors.InsufficientPrivilege,
        ) as exc:
            answers.found[name] = None
            answers.unanswered.append(name)
            if isinstance(exc, psycopg.errors.InsufficientPrivilege):
                answers.refused.append(name)
    if answers.refused:
        answers.remedy = _find_remedy(conn)
    return answers


def _find_remedy(conn: Connection) -> str:
    role = ROLES["stats"]
    if fetch_one(conn, bool, "has_role", name=role):
        return "pyapp db roles"
    return f"GRANT {role} TO {quote_name(conn.info.user)}"
