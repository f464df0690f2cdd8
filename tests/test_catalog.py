"""Every object of the schema follows the project's conventions.

catalog_rules has the rules. Each is broken once here, to prove that it finds something.
"""

import re

import psycopg
import pytest

from pyapp._core.queries import QUERIES, TOOL_QUERIES, schema_text
from pyapp.devtools.checks.schema_docs import read_index_notes
from tests.catalog_rules import COLUMNS, CONSTRAINTS, FUNCTIONS, INDEXES, RULES, Rule

SCHEMA = schema_text()
NAMES = [rule.name for rule in RULES]
LONGEST_TABLE = 39

# Why each function needs privileges that its callers lack.
SECURITY_DEFINER = {
    "app.add_usage()": "writes usage_slots, which its callers may not",
    "app.anonymize_user(uuid)": "deletes payloads, detached ones included",
    "app.cancel_referral(uuid)": "deletes; DELETE would allow to lock the table",
    "app.cut_usage(uuid)": "writes usage_slots, which its callers may not",
    "app.delete_expired_sessions(bigint)": "deletes, like cancel_referral",
    "app.delete_session(bytea)": "deletes, like cancel_referral",
    "app.delete_user_sessions(uuid)": "deletes, like cancel_referral",
    "app.end_unverified_sessions()": "deletes sessions, which its callers may not",
    "app.grant_referral_credits()": "writes the counters of both users",
    "app.list_detached_payloads(uuid[])": "reads tables that no role may read",
    "app.list_user_events(uuid)": "reads the events of one user alone",
    "app.refuse_user_id()": "reads all users",
    "app.replace_stripe_items(text[],jsonb[])": "deletes, like cancel_referral",
    "app.take_stripe_claims()": "reads and writes the mirror and Stripe's columns",
}

# Names without a unit that are Stripe's, or required by the product.
WITHOUT_UNIT = {
    "as_of": "the usual name for the time of a snapshot",
    "billing_cycle_anchor": "Stripe's name",
    "cancel_at_period_end": "Stripe's name",
    "current_period_end": "Stripe's name",
    "current_period_start": "Stripe's name",
    "day": "the key of a view named daily",
    "next_quota_reset": "required by the product",
    "quota_anchor": "required by the product",
    "valid_from": "the usual name for the beginning of a validity",
    "quota_period_start": "required by the product",
    "subscription_active": "required by the product",
    "trial_end": "Stripe's name",
}


def broken(conn: psycopg.Connection, rule: Rule) -> list[str]:
    return sorted({name for (name,) in conn.execute(rule.sql)})


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_schema_follows_the_rule(conn: psycopg.Connection, rule: Rule):
    complaints = [f"{name}: {rule.remedy}" for name in broken(conn, rule)]

    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_rule_names_the_object_that_breaks_it(conn: psycopg.Connection, rule: Rule):
    before = {other.name: broken(conn, other) for other in RULES}
    conn.execute(rule.planted)
    caught = {
        other.name: sorted(set(broken(conn, other)) - set(before[other.name]))
        for other in RULES
    }

    assert {name: objects for name, objects in caught.items() if objects} == {
        rule.name: [rule.caught]
    }


def test_security_definer_function_has_a_reason(conn: psycopg.Connection):
    found = conn.execute(
        f"SELECT f.object FROM ({FUNCTIONS}) AS f WHERE f.prosecdef"
    ).fetchall()

    assert sorted(SECURITY_DEFINER) == sorted(name for (name,) in found), (
        "list each SECURITY DEFINER function, and no other, in SECURITY_DEFINER"
    )


def test_column_carries_its_unit(conn: psycopg.Connection):
    found = conn.execute(
        f"""
        SELECT c.attname, c.object FROM ({COLUMNS}) AS c
        WHERE (c.type = 'timestamp with time zone' AND c.attname NOT LIKE '%\\_at')
            OR (c.type = 'date' AND c.attname NOT LIKE '%\\_on')
            OR (c.type = 'boolean' AND c.attname !~ '^(is|has)_')
        """
    ).fetchall()
    complaints = [
        f"{place}: name it *_at (timestamptz), *_on (date), is_* or has_* (boolean)"
        for name, place in found
        if name not in WITHOUT_UNIT
    ]

    assert not complaints, "\n".join(complaints)
    assert set(WITHOUT_UNIT) == {name for name, _ in found}, "an exception is stale"


def test_index_comment_names_a_query_or_constraint(conn: psycopg.Connection):
    indexes = conn.execute(
        f"SELECT i.relname FROM ({INDEXES}) AS i WHERE NOT i.is_constraint"
    ).fetchall()
    constraints = conn.execute(f"SELECT c.conname FROM ({CONSTRAINTS}) AS c").fetchall()
    notes = read_index_notes(SCHEMA)
    known = {*QUERIES, *TOOL_QUERIES, *(name for (name,) in constraints)}
    complaints = []
    for (index,) in indexes:
        names = notes[index].serves if index in notes else ()
        unknown = [name for name in names if name not in known]
        if not names:
            complaints.append(f"{index}: start its comment with '-- For <query>'")
        if unknown:
            complaints.append(f"{index}: no such query or constraint: {unknown}")

    assert not complaints, "\n".join(complaints)


def test_table_fits_on_one_screen():
    tables = re.finditer(r"^CREATE TABLE (\S+)[^;]*;", SCHEMA, re.MULTILINE)
    lengths = {table[1]: len(table[0].splitlines()) for table in tables}

    complaints = [
        f"{table} has {lines} lines: move its checks below its comments, as for users"
        for table, lines in lengths.items()
        if lines > LONGEST_TABLE
    ]

    assert lengths
    assert not complaints, "\n".join(complaints)
