"""Breaks one rule of the schema at a time; the simulation has to find each.

    python -m tests.simulation.mutants

Each mutant runs in small seeds until one fails. A text that the schema no longer
contains is an error: adapt it here.
"""

import argparse
import sys

from pyapp._core.connection import connect
from pyapp._core.queries import schema_text
from pyapp.devtools.checks.scratch_database import scratch_database
from pyapp.devtools.server.embedded import EmbeddedServer
from tests.simulation.run import simulate
from tests.temp_server import temp_server

_ITEMS = "WHERE k.subscription_id = s.id\n        LIMIT ALL"
_PRODUCT = "        p.plan_id IS NULL,\n"
_PAST_DUE = "        t.status = 'past_due',\n"
_CREDITS = "        p.credits DESC NULLS LAST,\n"
_END = "        i.current_period_end DESC NULLS LAST,\n"
_PAID = "    best.status = 'active' AND best.plan_id IS NOT NULL\n"
_AMOUNT = "best.unit_amount IS DISTINCT FROM 0"
_CLAIMED = "k.claimed_user_id IS NOT NULL\n                AND ("
_DELETED = "        c.is_deleted,\n        app.is_active_status"

# The rule that holds instead of the right one, and what replaces what in the schema.
MUTANTS: dict[str, list[tuple[str, str]]] = {
    "the first item counts": [
        (_ITEMS, "WHERE k.subscription_id = s.id\n        ORDER BY k.id LIMIT 1")
    ],
    "the item that ends first counts": [
        (
            _ITEMS,
            "WHERE k.subscription_id = s.id\n"
            "        ORDER BY k.current_period_end LIMIT 1",
        )
    ],
    "the subscription that ends last counts": [
        (_PRODUCT + _PAST_DUE + _CREDITS + _END, _END)
    ],
    "the linked customer counts": [
        (_PRODUCT, "        c.id = linked_id DESC NULLS LAST,\n" + _PRODUCT)
    ],
    "another product hides a plan": [
        (_PRODUCT, ""),
        (_CREDITS, _CREDITS.replace("LAST", "FIRST")),
    ],
    "past_due is before active": [(_PAST_DUE, _PAST_DUE.replace("=", "<>"))],
    "past_due is like active": [(_PAST_DUE, "")],
    "the fewest credits count": [(_CREDITS, _CREDITS.replace("DESC", "ASC"))],
    "the earliest end counts": [(_END, _END.replace("DESC", "ASC"))],
    "quantity does not count": [("* NULLIF(q.units, 0)", "")],
    "quantity 0 buys a plan": [("q.units > 0", "q.units >= 0")],
    "a metered item buys no plan": [("COALESCE(quantity, 1)", "COALESCE(quantity, 0)")],
    "a trial moves the period": [
        (_PAID, _PAID.replace("= 'active'", "IN ('active', 'trialing')"))
    ],
    "past_due moves the period": [
        (_PAID, _PAID.replace("= 'active'", "IN ('active', 'past_due')"))
    ],
    "another product moves the period": [
        (_PAID, _PAID.replace(" AND best.plan_id IS NOT NULL", ""))
    ],
    "a free price moves the period": [(f"    AND {_AMOUNT}", "")],
    "a price without an amount is free": [(_AMOUNT, "best.unit_amount > 0")],
    "a deleted customer counts": [
        (_DELETED, "        app.is_active_status"),
        ("WHEN c.is_deleted AND s.status <> 'incomplete_expired'", "WHEN FALSE"),
    ],
    "a deleted customer counts like a live one": [
        (_DELETED, "        app.is_active_status")
    ],
    "paused collection ends access": [
        (
            "                ELSE s.status\n",
            "                WHEN s.pause_behavior IS NOT NULL THEN 'paused'\n"
            "                ELSE s.status\n",
        )
    ],
    "removed items stay": [
        (
            "DELETE FROM app.stripe_subscription_items AS k\n        WHERE",
            "DELETE FROM app.stripe_subscription_items AS k\n        WHERE FALSE AND",
        )
    ],
    "a weaker claim wins": [("k.advantage > 0\n", "k.advantage <> 0\n")],
    "the first claim stays": [
        ("k.advantage > 0\n", "k.advantage > 0 AND k.known_claim IS NULL\n")
    ],
    "a reference is stronger than metadata": [
        ("WHEN 'reference' THEN 2", "WHEN 'reference' THEN 9")
    ],
    "a checkout is stronger than a subscription": [
        ("WHEN 'checkout' THEN 3", "WHEN 'checkout' THEN 9")
    ],
    "a claim on an absent user is lost": [
        (_CLAIMED, _CLAIMED.replace("NULL\n", "NULL AND k.is_present\n"))
    ],
    "a new user takes no claims": [
        ("WHERE c.claimed_user_id = u.id\n", "WHERE FALSE\n")
    ],
    "an address need not be verified": [
        ("AND u.email_verified_at IS NOT NULL\n", "\n")
    ],
    "a claim dates its customer": [
        ("            to_timestamp(0)\n", "            now()\n")
    ],
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants")
    parser.add_argument("--seeds", type=int, default=1, help="seeds until one fails")
    seeds, schema, survivors = parser.parse_args().seeds, schema_text(), 0
    with temp_server() as server:
        for name, changes in MUTANTS.items():
            found = find_failure(server, mutate(schema, changes), seeds)
            survivors += found is None
            print(f"{name}: {(found or 'NOT FOUND')[:100]}", flush=True)
    return 1 if survivors else 0


def mutate(schema: str, changes: list[tuple[str, str]]) -> str:
    """Return the schema with the changes.

    Raises:
        ValueError: the schema does not contain the text to be replaced.
    """
    for old, new in changes:
        if old not in schema:
            raise ValueError(f"the schema does not contain: {old}")
        schema = schema.replace(old, new)
    return schema


def find_failure(server: EmbeddedServer, schema: str, seeds: int) -> str | None:
    """Return the first failure of the simulation with this schema, if there is one."""
    for seed in range(1, seeds + 1):
        with scratch_database(server.url) as url:
            with connect(url) as conn:
                conn.execute(schema.encode())
            try:
                simulate(url, seed, customers=80, changes=500)
            except Exception as exc:
                return str(exc) or repr(exc)
    return None


if __name__ == "__main__":
    sys.exit(main())
