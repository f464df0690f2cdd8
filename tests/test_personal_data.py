"""Every column is classed in personal_data.toml; exports and erasures agree with it."""

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pyapp._core.connection import connect
from pyapp.roles import apply_roles
from pyapp.stripe_sync.events import delete_event_payloads
from pyapp.users import anonymize_user, export_user
from tests.personal_data import Person, add_person, columns_of, read_personal_data

TABLES = read_personal_data()
CLASSES = {"erased", "kept", "retained", "none"}
# Texts of a closed set, which cannot hold a word of the test.
CHOICES = {
    "referrals.status",
    "stripe_customers.claim_source",
    "stripe_events.status",
    "users.referral_code",
}
# Ids of other rows, which have a word of their own place.
REFERENCES = {
    "stripe_subscription_items.subscription_id",
    "stripe_subscriptions.customer_id",
    "users.stripe_customer_id",
}
# The column that names the person, in the tables with erased columns.
OWNERS = {
    "fingerprints": "id",
    "message_payloads": "subject_id",
    "sessions": "user_id",
    "users": "id",
}
# Keys of an export that are not columns.
DERIVED = {
    "kind",
    "is_anonymous",
    "is_claimed",
    "is_linked",
    "is_referrer",
    "is_shared",
}
# Records of usage are days, which the view usage_daily has.
OF_VIEWS = {("usage", "day"), ("usage", "total_tokens")}


@pytest.fixture(scope="module")
def people(module_database: str) -> tuple[Person, Person]:
    """Return two persons."""
    with connect(module_database) as conn:
        return add_person(conn, "ann"), add_person(conn, "bob")


def dump_words(url: str, word: str) -> set[str]:
    """Return the places of the words of *word* in all tables of the database."""
    with connect(url) as conn:
        tables = conn.execute(
            """
            SELECT c.oid::regclass::text
            FROM pg_class AS c
            WHERE c.relkind IN ('r', 'm')
                AND c.relnamespace NOT IN (
                    'pg_catalog'::regnamespace, 'information_schema'::regnamespace
                )
            """
        ).fetchall()
        rows = [
            row
            for (table,) in tables
            for row in conn.execute(f"SELECT t::text FROM {table} AS t".encode())
        ]
    return set(re.findall(rf"{word}-(\w+-\w+)", str(rows)))


def export_words(url: str, person: Person, word: str) -> set[str]:
    with connect(url) as conn:
        lines = [row.json_text for row in export_user(conn, user_id=person.user_id)]
    return set(re.findall(rf"{word}-(\w+-\w+)", "\n".join(lines)))


def read_erased(url: str, person: Person) -> dict[str, Any]:
    """Return a value of each column that an erasure empties, if any is stored."""
    found: dict[str, Any] = {}
    ids = [person.user_id, person.fingerprint_id]
    with connect(url) as conn:
        for table, entries in TABLES.items():
            for column, kind in columns_of(entries).items():
                if kind == "erased":
                    rows = conn.execute(
                        f"SELECT max(t.{column}::text) FROM app.{table} AS t"
                        f" WHERE t.{OWNERS[table]} = ANY(%s)".encode(),
                        [ids],
                    )
                    found[f"{table}.{column}"] = rows.fetchall()[0][0]
    return found


def places(*classes: str) -> set[str]:
    """Return the places of the columns of these classes that can hold a word."""
    return {
        f"{table}-{column}"
        for table, entries in TABLES.items()
        for column, kind in columns_of(entries).items()
        if kind in classes and is_text(table, column)
    }


def is_text(table: str, column: str) -> bool:
    place = f"{table}.{column}"
    return TYPES[place] in {"text", "jsonb"} and place not in CHOICES | REFERENCES


TYPES: dict[str, str] = {}


@pytest.fixture(autouse=True, scope="module")
def _types(module_database: str) -> None:
    """Read the columns of all tables except partitions and detached payloads."""
    with connect(module_database) as conn:
        rows = conn.execute(
            """
            SELECT c.relname || '.' || a.attname, format_type(a.atttypid, a.atttypmod)
            FROM pg_class AS c
            INNER JOIN pg_attribute AS a ON a.attrelid = c.oid
            WHERE c.relnamespace = 'app'::regnamespace
                AND c.relkind IN ('r', 'p') AND NOT c.relispartition
                AND a.attnum > 0 AND NOT a.attisdropped
            """
        ).fetchall()
    TYPES.update(rows)


def test_every_column_says_whether_it_is_personal():
    listed = {
        f"{table}.{column}": kind
        for table, entries in TABLES.items()
        for column, kind in columns_of(entries).items()
    }

    unlisted = sorted(TYPES.keys() - listed.keys())
    assert not unlisted, (
        f"{', '.join(unlisted)}: does it say anything about a person? If so, does"
        " app.anonymize_user erase it, and does the query export_user return it? Answer"
        " in sql/devtools/personal_data.toml and in docs/users.md"
    )
    assert not sorted(listed.keys() - TYPES.keys()), "these columns do not exist"
    assert set(listed.values()) == CLASSES


def test_kept_columns_have_a_reason():
    for table, entries in TABLES.items():
        is_kept = "kept" in columns_of(entries).values()
        assert is_kept == ("kept_because" in entries), table


def test_export_has_every_personal_column_but_those_with_a_reason(
    module_database: str, people: tuple[Person, Person]
):
    with connect(module_database) as conn:
        records = [
            json.loads(row.json_text)
            for row in export_user(conn, user_id=people[1].user_id)
        ]
    keys: dict[str, set[str]] = {}
    for record in records:
        keys.setdefault(record["kind"], set()).update(record)

    # The entitlement is a view.
    keys.pop("entitlement")
    found = {(kind, key) for kind in keys for key in keys[kind] - DERIVED}
    expected = {
        (entries["record"], column)
        for entries in TABLES.values()
        for column, kind in columns_of(entries).items()
        if kind != "none" and column not in entries.get("not_exported", {})
    }
    assert expected - found == set(), "the query export_user does not return these"
    assert found - expected == OF_VIEWS, "personal_data.toml does not list these"


def test_words_of_a_person_are_exported_to_that_person_alone(
    module_database: str, people: tuple[Person, Person]
):
    ann, bob = people
    everything = places("erased", "kept", "retained")

    missing = everything - dump_words(module_database, "ann")
    assert missing == set(), "add_person of tests/personal_data.py must store these"
    assert everything - export_words(module_database, ann, "ann") == set()
    assert export_words(module_database, ann, "bob") == set()
    assert export_words(module_database, bob, "ann") == set()


def test_erasure_leaves_no_word_but_those_that_are_kept(database: str):
    with connect(database) as conn:
        ann, bob = add_person(conn, "ann"), add_person(conn, "bob")
    before = dump_words(database, "bob")
    stored = read_erased(database, ann)

    with connect(database) as conn:
        anonymize_user(conn, user_id=ann.user_id)

    empty = {place for place, value in stored.items() if value is None}
    assert empty == set(), "add_person of tests/personal_data.py must store these"
    left_values = {
        place
        for place, value in read_erased(database, ann).items()
        if value is not None
    }
    assert left_values == set(), "app.anonymize_user does not erase these"

    kept = places("kept", "retained")
    left = dump_words(database, "ann")
    assert left & places("erased") == set()
    assert kept - left == set()
    assert kept - export_words(database, ann, "ann") == set()
    assert dump_words(database, "bob") == before
    assert export_words(database, bob, "bob") >= places("erased")
    with connect(database) as conn:
        later = datetime.now(UTC) + timedelta(days=1)
        delete_event_payloads(conn, before=later, limit=100)
    assert dump_words(database, "ann") & places("retained") == set()


def test_readonly_role_is_refused_by_a_column_that_holds_words(
    conn: psycopg.Connection[Any],
):
    apply_roles(conn)
    person = add_person(conn, "ann")
    conn.execute("SET LOCAL ROLE pyapp_readonly")

    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        export_user(conn, user_id=person.user_id)
