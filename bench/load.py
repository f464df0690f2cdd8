"""Fill an empty database with the load that everything is measured on."""

import time
from pathlib import Path

import psycopg

from pyapp.paths import sql_dir
from pyapp.queries import Query, load_queries

QUERIES = load_queries(Path(__file__).parent / "sql")
BATCH = 500_000
MESSAGES_PER_USER = 500


def query(name: str) -> Query:
    """Return one of the benchmark's own statements."""
    return QUERIES[name]


def load(url: str, messages: int) -> float:
    """Build the schema and fill it with *messages*; return the seconds it took.

    The first account has one message in a hundred, the others ever fewer, over twelve
    months up to now. The rollup is filled once at the end, as after a bulk restore.
    """
    began = time.perf_counter()
    users = max(200, messages // MESSAGES_PER_USER)
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute((sql_dir() / "schema.sql").read_bytes())
        for name in ("create_bench_schema", "create_accounts"):
            conn.execute(query(name).sql)
        conn.execute("SET synchronous_commit = off")
        conn.execute("SET session_replication_role = replica")
        conn.execute(query("set_seed").sql)
        conn.execute(query("insert_users").sql, {"users": users})
        conn.execute(query("insert_accounts").sql)
        for first in range(1, messages + 1, BATCH):
            last = min(first + BATCH - 1, messages)
            conn.execute(
                query("insert_messages").sql,
                {"users": users, "first": first, "last": last},
            )
        conn.execute(query("insert_usage").sql)
        conn.execute(query("insert_sessions").sql)
        conn.execute(query("create_plain_messages").sql)
        conn.execute(query("reference_plain_users").sql)
        conn.execute("VACUUM (ANALYZE)")
        conn.execute("CHECKPOINT")
    return time.perf_counter() - began
