"""The plans of a statement and of all statements that it causes, by auto_explain.

Functions, triggers and foreign keys run statements of their own. auto_explain reports
the plan of each as it was executed.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from pyapp._core.queries import QUERIES, Query

# A sequential scan is fine below this number of rows.
LARGE = 1_000


@dataclass
class Found:
    """Indexes used, tables scanned and tables written by the plans of a statement."""

    indexes: set[str] = field(default_factory=set)
    scans: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)


class PlanReader:
    """Runs statements on a connection and reads their plans."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self.conn = conn
        self._plans: list[dict[str, Any]] = []
        conn.execute("LOAD 'auto_explain'")
        # Usual on solid-state disks, where random reads cost little more.
        conn.execute("SET random_page_cost = 1.1")
        for name, value in {
            "log_min_duration": "0",
            "log_nested_statements": "on",
            "log_format": "json",
            "log_level": "notice",
        }.items():
            conn.execute(f"SET auto_explain.{name} = '{value}'")
        relations = conn.execute(
            """
            SELECT c.relname, COALESCE(p.relname, c.relname), c.reltuples
            FROM pg_class AS c
            LEFT JOIN pg_inherits AS i ON i.inhrelid = c.oid
            LEFT JOIN pg_class AS p ON p.oid = i.inhparent
            WHERE c.relnamespace = 'app'::regnamespace
            """
        ).fetchall()
        # Partitions and their indexes are reported under the name of their parent.
        self._names = {name: whole for name, whole, _ in relations}
        self._large = {name for name, _, rows in relations if rows >= LARGE}
        conn.add_notice_handler(self._add_plan)

    def _add_plan(self, notice: psycopg.errors.Diagnostic) -> None:
        _, _, text = (notice.message_primary or "").partition("plan:\n")
        if text:
            self._plans.append(json.loads(text)["Plan"])

    def run(
        self, statement: Query, values: Mapping[str, Any], *, is_generic: bool
    ) -> Found:
        """Run *statement* prepared, roll it back, and return what its plans use."""
        mode = "force_generic_plan" if is_generic else "force_custom_plan"
        with self.conn.transaction(force_rollback=True):
            if "staged_calls" in statement.sql:
                self.conn.execute(QUERIES["create_staged_messages"].sql)
            self.conn.execute(sql.SQL("SET LOCAL plan_cache_mode = {}").format(mode))
            self._plans.clear()
            self.conn.execute(sql.SQL(statement.sql), values, prepare=True)
        found = Found()
        for node in self._nodes(self._plans):
            self._read(node, found)
        return found

    def _nodes(self, plans: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for node in plans:
            yield node
            yield from self._nodes(node.get("Plans", []))

    def _read(self, node: dict[str, Any], found: Found) -> None:
        indexes = [node.get("Index Name"), *node.get("Conflict Arbiter Indexes", [])]
        # Indexes of the system catalog are left out.
        found.indexes |= {self._names[name] for name in indexes if name in self._names}
        table = node.get("Relation Name", "")
        if node["Node Type"] == "Seq Scan" and table in self._large:
            found.scans.add(self._names[table])
        if node["Node Type"] == "ModifyTable" and table in self._names:
            found.written.add(self._names[table])
