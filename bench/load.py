"""Fill an empty database with the load of all measurements."""

import time
from pathlib import Path

import psycopg

from pyapp._core.queries import Query, load_queries, schema_text

QUERIES = load_queries(Path(__file__).parent / "sql")
BATCH = 500_000
# The same number at every size: the usage of each account grows.
ACCOUNTS = 1000


def query(name: str) -> Query:
    """Return a statement of bench/sql."""
    return QUERIES[name]


def load(url: str, messages: int, accounts: int = ACCOUNTS) -> float:
    """Build the schema and fill it with *messages*; return the seconds taken.

    The first account has 1 % of the messages, the others decreasing numbers, over the
    last twelve months. The rollup is filled at the end, as after a bulk restore.
    """
    began = time.perf_counter()
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(schema_text().encode())
        for name in (
            "create_bench_schema",
            "create_accounts",
            "create_text_function",
            "create_dropped_indexes",
            "drop_indexes",
        ):
            conn.execute(query(name).source)
        for name in ("defer_commits", "trust_rows", "set_seed"):
            conn.execute(query(name).sql)
        conn.execute(query("insert_users").sql, {"users": accounts})
        for name in ("insert_accounts", "heat_account"):
            conn.execute(query(name).sql)
        for first in range(1, messages + 1, BATCH):
            last = min(first + BATCH - 1, messages)
            conn.execute(
                query("insert_messages").sql,
                {"users": accounts, "first": first, "last": last, "total": messages},
            )
        conn.execute(query("restore_indexes").source)
        for name in ("insert_usage", "insert_sessions", "vacuum"):
            conn.execute(query(name).sql)
        conn.execute("CHECKPOINT")
    return time.perf_counter() - began
