"""Checks the rules of the schema and every confirmed write."""

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

import psycopg

from pyapp.sessions import find_session
from tests.metering import period_start, quota_differences, usage_differences
from tests.soak.account import Account
from tests.soak.ledger import Connection, Ledger

# Queries that must return no rows, by rule number.
QUERIES = {
    1: """
        SELECT referral_code FROM app.users
        GROUP BY referral_code
        HAVING count(*) > 1 OR referral_code !~ '^ref-[0-9a-f-]{36}$'
    """,
    2: """
        SELECT r.referred_id FROM app.referrals AS r
        WHERE r.referrer_id = r.referred_id
            OR 1 < (
                SELECT count(*) FROM app.referrals AS o
                WHERE o.referred_id = r.referred_id
                    OR (o.referrer_id, o.referred_id) = (r.referred_id, r.referrer_id)
            )
    """,
    3: """
        SELECT u.id, u.referral_count FROM app.users AS u
        WHERE u.referral_count > u.referral_limit
            OR u.referral_count <> (
                SELECT count(*) FROM app.referrals AS r
                WHERE r.referrer_id = u.id AND r.status = 'completed'
            )
    """,
    4: """
        SELECT u.id, u.referral_credits FROM app.users AS u
        WHERE u.referral_credits <> (
            SELECT coalesce(sum(r.credits), 0) FROM app.referrals AS r
            WHERE u.id IN (r.referrer_id, r.referred_id) AND r.status = 'completed'
        )
    """,
    5: """
        SELECT m.id FROM app.messages AS m
        WHERE m.subject_id IS DISTINCT FROM coalesce(m.user_id, m.fingerprint_id)
    """,
    7: """
        SELECT m.id FROM app.messages AS m
        GROUP BY m.subject_id, m.id HAVING count(*) > 1
    """,
    9: """
        SELECT 'user', u.id FROM app.users AS u
        WHERE u.quota <> u.base_quota + u.referral_credits
            OR u.subscription_active <> coalesce(
                u.subscription_status IN ('active', 'trialing', 'past_due'), FALSE
            )
        UNION ALL
        SELECT 'message', m.id FROM app.messages AS m
        WHERE m.total_tokens <> m.input_tokens + m.cache_creation_input_tokens
            + m.cache_read_input_tokens + m.output_tokens
        UNION ALL
        SELECT 'payload', p.message_id FROM app.message_payloads AS p
        WHERE p.last_message IS DISTINCT FROM p.request -> -1
    """,
}
# Statements that the trigger messages_append_only must refuse.
REFUSED = ("UPDATE app.messages SET credits = 0", "DELETE FROM app.messages")


def find_broken(conn: Connection, ledger: Ledger, account: Account) -> Iterator[str]:
    """Yield a line for each broken rule."""
    for number, query in QUERIES.items():
        yield from _report(f"rule {number}", conn.execute(query.encode()).fetchall())
    yield from _report("rule 5", _try_to_change(conn))
    yield from _report("rule 6", usage_differences(conn))
    yield from _report("rule 6", quota_differences(conn))
    yield from _report("rule 8", account.check(conn))
    yield from _report("rule 9", _find_wrong_periods(conn))
    for name, find in _CONFIRMED.items():
        yield from _report(f"the ledger of {name}", find(conn, ledger))


def _report(name: str, found: Sequence[object]) -> Iterator[str]:
    if found:
        yield f"{name} is broken, 1 of {len(found)}: {found[0]}"


def _try_to_change(conn: Connection) -> list[object]:
    allowed: list[object] = []
    for statement in REFUSED:
        try:
            with conn.transaction(force_rollback=True):
                conn.execute(statement.encode())
                allowed.append(statement)
        except psycopg.IntegrityError as exc:
            # Without the trigger, a foreign key may still refuse the statement.
            if exc.diag.constraint_name != "messages_append_only":
                allowed.append(statement)
    return allowed


def _find_wrong_periods(conn: Connection) -> list[object]:
    rows = conn.execute(
        "SELECT id, quota_anchor, next_quota_reset, quota_period_start FROM app.users"
    )
    before = timedelta(microseconds=1)
    return [row for row in rows if row[3] != period_start(row[1], row[2] - before)]


def _check_messages(conn: Connection, ledger: Ledger) -> list[object]:
    """Confirmed messages have their first values; a batch is stored whole or not."""
    found = {
        (subject, message): (credits, has_payload)
        for subject, message, credits, has_payload in conn.execute(
            "SELECT m.subject_id, m.id, m.credits, p.message_id IS NOT NULL"
            " FROM app.messages AS m LEFT JOIN app.message_payloads AS p"
            " ON (p.subject_id, p.message_id) = (m.subject_id, m.id)"
        )
    }
    wrong: list[object] = [
        f"{key} should have {sent} and has {found.get(key)}"
        for key, sent in ledger.messages.items()
        if found.get(key) != sent
    ]
    allowed = set(ledger.messages)
    for keys in ledger.given_up:
        allowed |= set(keys)
        stored = sum(key in found for key in keys)
        if stored not in (0, len(keys)):
            wrong.append(f"{stored} of {len(keys)} messages of a batch are stored")
    wrong += [f"no client sent {key}" for key in found.keys() - allowed]
    return wrong


def _check_users(conn: Connection, ledger: Ledger) -> list[object]:
    found = dict(conn.execute("SELECT id, referral_code FROM app.users").fetchall())
    return [item for item in ledger.users.items() if found.get(item[0]) != item[1]]


def _check_referrals(conn: Connection, ledger: Ledger) -> list[object]:
    query = "SELECT referred_id, referrer_id FROM app.referrals"
    found = dict(conn.execute(query).fetchall())
    return [i for i in ledger.referrals.items() if found.get(i[0]) != i[1]]


def _check_sessions(conn: Connection, ledger: Ledger) -> list[object]:
    wrong: list[object] = []
    for token, user_id in ledger.sessions.items():
        session = find_session(conn, token=token)
        if session is None or session.user.id != user_id:
            wrong.append(f"a session of {user_id} is missing")
    if any(find_session(conn, token=token) for token in ledger.signed_out):
        wrong.append("a deleted session is stored")
    return wrong


_CONFIRMED: dict[str, Callable[[Connection, Ledger], list[object]]] = {
    "messages": _check_messages,
    "users": _check_users,
    "referrals": _check_referrals,
    "sessions": _check_sessions,
}
