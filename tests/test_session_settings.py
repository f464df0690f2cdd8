"""No setting of a role, a database or the server changes the result of a function.

ALTER ROLE sets every setting that a role may have to each of its other values, and all
functions are called in a session with it.
"""

import asyncio
import dataclasses
import importlib
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, get_args
from uuid import UUID

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pyapp import (
    aio,
    fingerprints,
    messages,
    plans,
    quota,
    referrals,
    sessions,
    usage,
    users,
)
from pyapp._core.connection import LEFT_TO_THE_OPERATOR, SETTINGS, connect, pool
from pyapp.errors import DatabaseUnavailableError, PyappError
from tests.metering import new_message
from tests.query_parity import _sample_arguments, find_functions

WHEN = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
IDS = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
ALL = """
    SELECT name, vartype, setting, min_val, max_val, enumvals, category
    FROM pg_settings
    WHERE context IN ('user', 'superuser')
    ORDER BY name
"""
# Values of the settings that are strings, or sets of words.
STRINGS: dict[str, list[str]] = {
    "DateStyle": ["SQL,DMY", "German", "Postgres,YMD", "ISO,YMD"],
    "TimeZone": ["Asia/Kathmandu", "America/St_Johns", "Pacific/Kiritimati"],
    "application_name": ["other"],
    "backtrace_functions": ["int4div"],
    "client_encoding": ["LATIN1", "SQL_ASCII", "EUC_JP"],
    "createrole_self_grant": ["set"],
    "default_table_access_method": ["other"],
    "default_tablespace": ["other", "pg_default"],
    "default_text_search_config": ["pg_catalog.simple"],
    "dynamic_library_path": ["/nowhere"],
    "extension_control_path": ["/nowhere"],
    "extension_destdir": ["/nowhere"],
    "lc_messages": ["C.UTF-8"],
    "lc_monetary": ["C.UTF-8"],
    "lc_numeric": ["C.UTF-8"],
    "lc_time": ["C.UTF-8"],
    "log_connections": ["all", "on"],
    "output_plugin_libraries": ["pgoutput"],
    "plpgsql.extra_errors": ["all"],
    "plpgsql.extra_warnings": ["all"],
    "restrict_nonsystem_relation_kind": ["view", "view, foreign-table"],
    "search_path": ["", "app", "public, app, pg_temp", "shadow, pg_catalog", "other"],
    "temp_tablespaces": ["other", "pg_default"],
    "timezone_abbreviations": ["India", "Australia"],
    "wal_consistency_checking": ["all"],
}
# Values instead of the minimum, the maximum and another one.
NUMBERS = {
    # The maximum would be eight terabytes of memory.
    "temp_buffers": ["100", "16384"],
    "vacuum_buffer_usage_limit": ["0", "128"],
}
# Settings that exclude others, and settings that a role cannot have.
EXCLUSIVE = {"log_statement_stats"}
UNSETTABLE = {
    "transaction_deferrable",
    "transaction_isolation",
    "transaction_read_only",
}
# A longer statement is a failure.
LIMIT = "-c statement_timeout=30s"
# Objects that would hide those of pg_catalog.
SHADOW = """
    CREATE SCHEMA shadow;
    CREATE FUNCTION shadow.now() RETURNS timestamptz IMMUTABLE
        RETURN '1999-01-01'::timestamptz;
    CREATE FUNCTION shadow.lower(text) RETURNS text IMMUTABLE RETURN 'x'::text;
    CREATE FUNCTION shadow.never(uuid, uuid) RETURNS boolean IMMUTABLE RETURN FALSE;
    CREATE OPERATOR shadow.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = shadow.never);
"""


def other_values(row: tuple[Any, ...]) -> list[str]:
    """Return the values to try of one row of pg_settings."""
    name, kind, setting, least, most, words, _ = row
    if name in STRINGS or name in NUMBERS:
        return STRINGS.get(name) or NUMBERS[name]
    if kind == "bool":
        return ["off" if setting == "on" else "on"]
    if kind == "enum":
        return [word for word in words if word != setting]
    assert kind in ("integer", "real"), f"add values of {name} to STRINGS"
    middle = (
        str(int(min(float(most), max(float(least), 7)))) if kind == "integer" else least
    )
    return list(dict.fromkeys([least, most, middle]))


def plain(value: Any, name: str = "") -> Any:
    """Return *value* without the parts that differ between two runs."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
        return {name: plain(each, name) for name, each in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {f.name: plain(getattr(value, f.name), f.name) for f in fields}
    if isinstance(value, list | tuple):
        return sorted((plain(each) for each in value), key=repr)
    if isinstance(value, datetime):
        is_ours = WHEN <= value < WHEN + timedelta(days=1)
        return value.isoformat() if is_ours else f"a time at {value.utcoffset()}"
    if isinstance(value, UUID) or name == "token":
        return type(value)
    if isinstance(value, str):
        return IDS.sub("id", value)
    return value


def attempt(conn: psycopg.Connection[Any], call: Callable[[], object]) -> Any:
    """Return the result or error of *call*, and undo it."""
    try:
        with conn.transaction(force_rollback=True):
            return plain(call())
    except PyappError as exc:
        return type(exc), IDS.sub("id", str(exc))
    except psycopg.Error as exc:
        return type(exc), exc.sqlstate


def call_all(conn: psycopg.Connection[Any]) -> Iterator[tuple[str, Any]]:
    """Call every function: first in a product's order, then each alone."""
    ada = users.create_user(conn, email="\xc4da@example.com", name="Ada 'n' \\ Bob")
    bob = users.create_user(conn, email="bob@example.com")
    yield "user", plain(ada)
    device = fingerprints.upsert_fingerprint(conn, sig_hash="a\\b")
    yield "device", plain(device)
    for n, text in enumerate(("x\\n", '"\x7f\u20ac\U0001f600"', "null")):
        message = messages.record_message(
            conn,
            id=UUID(int=n + 1),
            model="m",
            user_id=ada.id,
            output_tokens=7,
            cost=Decimal("0.000000123456"),
            credits=Decimal("0.1"),
            finished_at=WHEN + timedelta(hours=n),
            client_id="c",
            client_request_id="r",
            request=[{"role": "user", "content": text}],
            response={"f": 0.1, "text": text},
        )
        yield "message", plain(message)
    many = [
        new_message(finished_at=WHEN, client_id=None, id=UUID(int=n)) for n in (8, 9)
    ]
    yield "many", plain(messages.record_messages(conn, many, fingerprint_id=device.id))
    for subject in (ada.id, device.id):
        yield "list", plain(messages.list_messages(conn, subject_id=subject))
        days = usage.list_usage(conn, by="day", subject_id=subject)
        yield "days", plain(days)
    for key in get_args(usage.UsageKey):
        whole = datetime(2026, 3, 1, tzinfo=UTC)
        for since in (whole, WHEN):
            groups = usage.list_usage(conn, by=key, since=since)
            yield "usage", plain(groups)
    yield (
        "payload",
        plain(
            messages.find_message_payload(
                conn, subject_id=ada.id, message_id=UUID(int=2)
            )
        ),
    )
    yield "usage", plain(usage.get_request_usage(conn, client_request_id="r"))
    yield "quota", plain(quota.get_user_quota(conn, user_id=ada.id, at=WHEN))
    yield "quotas", plain(quota.list_user_quotas(conn))
    yield (
        "device's",
        plain(quota.get_fingerprint_quota(conn, fingerprint_id=device.id, at=WHEN)),
    )
    yield (
        "referral",
        plain(
            referrals.redeem_referral(
                conn, referral_code=bob.referral_code, referred_id=ada.id
            )
        ),
    )
    yield "summary", plain(referrals.get_referral_summary(conn, user_id=bob.id))
    new = sessions.create_session(conn, user_id=ada.id, ttl=timedelta(hours=36))
    yield "session", plain(new)
    yield "found", plain(sessions.find_session(conn, token=new.token))
    yield "lives", new.session.expires_at - new.session.created_at
    new_plan = plans.create_plan(conn, plan_id="team", monthly_credits=Decimal("0.5"))
    yield "plan", plain(new_plan)
    yield (
        "price",
        plain(plans.add_plan_price(conn, plan_id="team", stripe_price_id="p")),
    )
    yield "priced", plain(plans.get_plan(conn, plan_id="team"))
    for refused in (
        lambda: plans.create_plan(conn, plan_id="free", monthly_credits=Decimal(9)),
        lambda: plans.add_plan_price(conn, plan_id="free", stripe_price_id="p"),
        lambda: users.create_user(conn, email="\xe4DA@example.com"),
        lambda: users.create_user(conn, email="no address"),
        lambda: users.set_user_email(conn, user_id=bob.id, email="\xe4da@example.com"),
    ):
        yield "refused", attempt(conn, refused)
    yield "found by", plain(users.find_user_by_email(conn, email="\xe4DA@example.com"))
    for function in find_functions():
        module = importlib.import_module(function.module)
        made = getattr(module, function.name)
        arguments = _sample_arguments(function.call)
        if "payload" in arguments:
            arguments["payload"] = '{"id": "x"}'
        result = attempt(conn, lambda: made(conn, **arguments))  # noqa: B023
        if function.name in OF_THE_SERVER | OF_CHANCE:
            result = type(result)
        yield str(function), result
    yield "erased", plain(users.anonymize_user(conn, user_id=ada.id))


# Functions whose values depend on the state of the server.
OF_THE_SERVER = {"get_server_state", "list_table_sizes", "list_unused_indexes"}
# Functions whose values are random ids, or numbers of a sequence.
OF_CHANCE = {"list_users", "list_user_quotas", "list_fingerprint_quotas", "insert_run"}


class Role:
    """The role of the tests, and its settings in one database."""

    def __init__(self, url: str) -> None:
        self.url = url
        parts = conninfo_to_dict(url)
        self.admin = psycopg.connect(url, autocommit=True)
        self.names = [sql.Identifier(str(parts[part])) for part in ("user", "dbname")]

    def set(self, settings: dict[str, str]) -> None:
        """Set exactly *settings* for new sessions of the role."""
        alter = sql.SQL("ALTER ROLE {} IN DATABASE {} ").format(*self.names)
        self.admin.execute(alter + sql.SQL("RESET ALL"))
        for name, value in settings.items():
            is_list = name in {"search_path", "temp_tablespaces"} and value
            given = sql.SQL(value) if is_list else sql.Literal(value)
            parts = map(sql.Identifier, name.split("."))
            self.admin.execute(
                alter + sql.SQL("SET {} TO {}").format(sql.SQL(".").join(parts), given)
            )

    def call_all(self, settings: dict[str, str]) -> Any:
        """Return the results of all functions in a session with *settings*."""
        self.set(settings)
        try:
            with connect(make_conninfo(self.url, options=LIMIT)) as conn:
                results = list(call_all(conn))
                conn.rollback()
                return results
        except Exception as exc:
            return f"{type(exc).__name__}: {exc}"
        finally:
            self.set({})


@pytest.fixture
def role(database: str) -> Iterator[Role]:
    role = Role(database)
    role.admin.execute(SHADOW)
    yield role
    role.admin.close()


def find_batches(role: Role) -> Iterator[dict[str, str]]:
    """Yield values of settings to try together, until all values have been tried.

    Planner settings are tried eight at a time: with all costs zero and every join
    method off, plans take hours.
    """
    role.admin.execute("DO $$ BEGIN END $$")  # loads PL/pgSQL and its settings
    rows = role.admin.execute(ALL).fetchall()
    assert len(rows) > 150
    rows = [row for row in rows if row[0] not in {*LEFT_TO_THE_OPERATOR, *UNSETTABLE}]
    planner = [row for row in rows if row[-1].startswith("Query Tuning")]
    alone = [row for row in rows if row[0] in EXCLUSIVE]
    others = [row for row in rows if row not in [*planner, *alone]]
    chunks = [planner[n :: len(planner) // 8 + 1] for n in range(len(planner) // 8 + 1)]
    for chunk in [others, alone, *chunks]:
        values = {row[0]: other_values(row) for row in chunk}
        for n in range(max(map(len, values.values()))):
            yield {name: each[n] for name, each in values.items() if n < len(each)}


def test_no_setting_of_a_role_changes_a_result(role: Role):
    """Many settings at once; one by one if the results differ."""
    batches = list(find_batches(role))
    expected = role.call_all({})
    assert isinstance(expected, list), expected

    found: dict[str, Any] = {}
    for batch in batches:
        if role.call_all(batch) == expected:
            continue
        alone = {
            f"{name} = {value}": first_difference(expected, results)
            for name, value in batch.items()
            if (results := role.call_all({name: value})) != expected
        }
        # On a busy machine a call may have timed out; a setting's effect is repeatable.
        if not alone and (results := role.call_all(batch)) != expected:
            alone[f"only together: {batch}"] = first_difference(expected, results)
        found |= alone
    assert found == {}


def first_difference(expected: list[Any], results: Any) -> Any:
    if isinstance(results, str):
        return results
    pairs = zip(expected, results, strict=True)
    return next((one, other) for one, other in pairs if one != other)


def test_sessions_do_not_set_the_operators_settings():
    assert not LEFT_TO_THE_OPERATOR.keys() & SETTINGS.keys()


HOSTILE = {
    "DateStyle": "German",
    "IntervalStyle": "iso_8601",
    "TimeZone": "Asia/Kathmandu",
    "client_encoding": "LATIN1",
    "default_transaction_isolation": "serializable",
    "exit_on_error": "on",
    "quote_all_identifiers": "on",
    "search_path": "shadow, pg_catalog",
    "session_replication_role": "replica",
    "standard_conforming_strings": "off",
}


def shown(name: str) -> str:
    """Return a setting of a session as SHOW returns it."""
    return SETTINGS[name].replace("ISO,MDY", "ISO, MDY")


@pytest.mark.parametrize("opens", ["connect", "pool", "aio.connect", "aio.pool"])
def test_every_kind_of_session_has_the_settings(role: Role, opens: str):
    expected = {name: shown(name) for name in SETTINGS}
    expected |= {"client_encoding": "UTF8", "session_replication_role": "origin"}
    show = sql.SQL("SELECT {}").format(
        sql.SQL(", ").join(
            sql.SQL("current_setting({})").format(name) for name in expected
        )
    )
    role.set(HOSTILE)

    async def ask() -> Any:
        if opens == "aio.connect":
            async with await aio.connect(role.url) as conn:
                return await (await conn.execute(show)).fetchone()
        async with await aio.pool(role.url) as many, many.connection() as conn:
            return await (await conn.execute(show)).fetchone()

    if opens == "connect":
        with connect(role.url) as conn:
            found = conn.execute(show).fetchone()
    elif opens == "pool":
        with pool(role.url) as connections, connections.connection() as conn:
            found = conn.execute(show).fetchone()
    else:
        found = asyncio.run(ask())

    assert found is not None
    assert dict(zip(expected, found, strict=True)) == expected


def test_settings_override_the_urls_options_and_survive_a_reset(database: str):
    options = "-c DateStyle=German -c TimeZone=Asia/Tokyo -c work_mem=8MB"
    url = make_conninfo(database, options=options, client_encoding="LATIN1")
    ask = (
        "SELECT current_setting('DateStyle'), current_setting('TimeZone'),"
        " current_setting('work_mem'), current_setting('client_encoding')"
    )
    with connect(url) as conn:
        conn.autocommit = True
        for reset in ("RESET ALL", "DISCARD ALL"):
            conn.execute(reset)
            assert conn.execute(ask).fetchone() == ("ISO, MDY", "UTC", "8MB", "UTF8")


def test_role_with_triggers_off_is_refused_in_one_line(role: Role):
    name = sql.Identifier(f"{role.admin.info.dbname}_plain")
    role.admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x'").format(name))
    role.admin.execute(
        sql.SQL("ALTER ROLE {} SET session_replication_role = replica").format(name)
    )
    url = make_conninfo(role.url, user=name.as_string().strip('"'), password="x")
    try:
        for open_it in (connect, pool, lambda url: asyncio.run(aio.connect(url))):
            with pytest.raises(DatabaseUnavailableError) as caught:
                open_it(url)
            assert caught.value.refused
            assert "RESET session_replication_role" in str(caught.value)
            assert "\n" not in str(caught.value)
    finally:
        role.admin.execute(sql.SQL("DROP ROLE {}").format(name))
