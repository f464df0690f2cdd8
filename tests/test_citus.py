"""Requirements of sql/citus.sql on the schema, checked without Citus."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import psycopg

from pyapp._core.queries import sql_dir
from pyapp.messages import NewMessage, record_message, record_messages
from tests.metering import add_user, usage_differences

TEXT = (sql_dir() / "citus.sql").read_text(encoding="utf-8")
DISTRIBUTED = re.findall(r"create_distributed_table\(\s*'app\.(\w+)'", TEXT)
REFERENCE = re.findall(r"create_reference_table\('app\.(\w+)'", TEXT)
DROPPED = re.findall(r"DROP INDEX app\.(\w+)", TEXT)


def test_unique_keys_of_distributed_tables_include_the_payer(conn: psycopg.Connection):
    rows = conn.execute(
        """
        SELECT x.relname
        FROM pg_index AS i
        INNER JOIN pg_class AS c ON c.oid = i.indrelid
        INNER JOIN pg_class AS x ON x.oid = i.indexrelid
        WHERE c.relnamespace = 'app'::regnamespace
            AND c.relname = ANY(%s)
            AND i.indisunique
            AND NOT EXISTS (
                SELECT FROM pg_attribute AS a
                WHERE a.attrelid = c.oid
                    AND a.attname = 'subject_id'
                    AND a.attnum = ANY(i.indkey)
            )
        """,
        [DISTRIBUTED],
    ).fetchall()

    assert DISTRIBUTED == ["messages", "message_payloads", "usage_slots"]
    # citus.sql replaces this index by one that is not unique.
    assert [name for (name,) in rows] == DROPPED == ["messages_fingerprint_id_id_idx"]


def test_distributed_tables_refer_to_reference_tables(conn: psycopg.Connection):
    referred = conn.execute(
        """
        SELECT DISTINCT t.relname
        FROM pg_constraint AS k
        INNER JOIN pg_class AS c ON c.oid = k.conrelid
        INNER JOIN pg_class AS t ON t.oid = k.confrelid
        WHERE k.contype = 'f' AND c.relname = ANY(%s)
        """,
        [DISTRIBUTED],
    ).fetchall()

    assert {name for (name,) in referred} <= {*DISTRIBUTED, *REFERENCE}


def test_no_trigger_of_other_machines_reads_the_mirror(conn: psycopg.Connection):
    for trigger, table in re.findall(r"DROP TRIGGER (\w+) ON app\.(\w+)", TEXT):
        conn.execute(f"DROP TRIGGER {trigger} ON app.{table}".encode())
    rows = conn.execute(
        """
        SELECT t.tgname
        FROM pg_trigger AS t
        INNER JOIN pg_class AS c ON c.oid = t.tgrelid
        INNER JOIN pg_proc AS p ON p.oid = t.tgfoid
        WHERE c.relnamespace = 'app'::regnamespace AND NOT t.tgisinternal
            AND c.relname = ANY(%s) AND p.prosrc ~ 'stripe_|plan_prices'
        """,
        [[*DISTRIBUTED, *REFERENCE]],
    ).fetchall()

    assert rows == []


def test_payer_is_not_a_generated_column(conn: psycopg.Connection):
    rows = conn.execute(
        "SELECT FROM pg_attribute WHERE attname = 'subject_id' AND attgenerated <> ''"
    ).fetchall()

    assert rows == []


def test_rollup_by_loop_keeps_the_same_sums(conn: psycopg.Connection):
    function = re.search(r"CREATE OR REPLACE FUNCTION.*?\$\$;", TEXT, re.DOTALL)
    assert function
    conn.execute(function[0])
    users = [add_user(conn) for _ in range(3)]
    now = datetime.now(UTC)
    messages = [
        NewMessage(
            id=uuid4(),
            model="m",
            user_id=user,
            finished_at=now - timedelta(days=n % 3),
            input_tokens=n,
            cache_creation_input_tokens=1,
            cache_read_input_tokens=2,
            output_tokens=3,
            cost=Decimal("0.01"),
            credits=Decimal("1.2"),
        )
        for n in range(9)
        for user in users
    ]

    record_messages(conn, messages)
    record_messages(conn, messages)
    record_message(conn, model="m", user_id=users[0], cost=Decimal("0.5"))

    assert usage_differences(conn) == []
