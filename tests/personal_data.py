"""A person with a recognizable word in every column that can hold one."""

import tomllib
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from psycopg import Connection
from psycopg.types.json import Jsonb

from pyapp._core.queries import sql_dir
from pyapp.fingerprints import upsert_fingerprint
from pyapp.messages import record_message
from pyapp.referrals import create_referral, redeem_referral
from pyapp.sessions import create_session
from pyapp.users import create_user
from tests.metering import add_user

# The entries of a table in personal_data.toml that are not columns.
NOTES = {"record", "kept_because", "not_exported"}


@dataclass(frozen=True)
class Person:
    """The ids of a person; `word` begins each of its words in the database.

    It has a letter that is not hexadecimal, so that no UUID contains it.
    """

    word: str
    user_id: UUID
    fingerprint_id: UUID
    customer_id: str
    token: str


def read_personal_data() -> dict[str, dict[str, Any]]:
    """Return personal_data.toml: tables, and in each its columns and notes."""
    text = (sql_dir() / "devtools" / "personal_data.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def columns_of(table: dict[str, Any]) -> dict[str, str]:
    """Return the class of each column of a table in personal_data.toml."""
    return {name: value for name, value in table.items() if name not in NOTES}


def add_person(conn: Connection[Any], word: str) -> Person:
    """Add a person; each text column contains "*word*-table-column"."""

    def w(place: str) -> str:
        return f"{word}-{place}"

    user = create_user(
        conn, email=f"{w('users-email')}@example.com", name=w("users-name")
    )
    # Before the session, which the verification of the address would end.
    _complete_user(conn, word, user.id)
    device = upsert_fingerprint(conn, sig_hash=w("fingerprints-sig_hash"))
    session = create_session(conn, user_id=user.id, fingerprint_id=device.id)
    for user_id, fingerprint_id in ((user.id, None), (None, device.id)):
        record_message(
            conn,
            user_id=user_id,
            fingerprint_id=fingerprint_id,
            id=uuid4(),
            provider=w("messages-provider"),
            model=w("messages-model"),
            client_id=w("messages-client_id"),
            client_request_id=w("messages-client_request_id"),
            cost=Decimal("0.1234567890123456789"),
            request=[
                {"content": w("message_payloads-request")},
                {"content": w("message_payloads-last_message")},
            ],
            response={"content": w("message_payloads-response"), "score": 0.1},
        )
    friend, guest, host = (add_user(conn) for _ in range(3))
    redeem_referral(conn, referral_code=user.referral_code, referred_id=friend)
    create_referral(conn, referral_code=user.referral_code, referred_id=guest)
    code = conn.execute(
        "SELECT u.referral_code FROM app.users AS u WHERE u.id = %s", [host]
    ).fetchone()
    assert code is not None
    redeem_referral(conn, referral_code=code[0], referred_id=user.id)
    return Person(word, user.id, device.id, w("stripe_customers-id"), session.token)


def _complete_user(conn: Connection[Any], word: str, user_id: UUID) -> None:
    """Verify the user's address, and add what Stripe knows."""
    places = (
        "stripe_customers-id",
        "stripe_subscriptions-id",
        "stripe_subscriptions-pause_behavior",
        "stripe_subscriptions-status",
        "stripe_subscription_items-id",
        "stripe_subscription_items-price_id",
        "stripe_events-id",
        "stripe_events-type",
        "stripe_events-api_version",
        "stripe_events-last_error",
        "users-image_url",
        "users-stripe_subscription_id",
        "users-stripe_price_id",
        "users-subscription_status",
    )
    payload = {
        "data": {
            "object": {
                "object": "subscription",
                "customer": f"{word}-stripe_customers-id",
                "note": f"{word}-stripe_events-payload",
            }
        }
    }
    values = {place.replace("-", "_"): f"{word}-{place}" for place in places}
    conn.execute(
        """
        WITH customer AS (
            INSERT INTO app.stripe_customers (
                id, user_id, claimed_user_id, claim_source, as_of
            )
            VALUES (
                %(stripe_customers_id)s, %(user_id)s, %(user_id)s, 'customer', now()
            )
        ),
        subscription AS (
            INSERT INTO app.stripe_subscriptions (
                id, customer_id, status, pause_behavior, claimed_user_id, created_at,
                as_of
            )
            VALUES (
                %(stripe_subscriptions_id)s, %(stripe_customers_id)s,
                %(stripe_subscriptions_status)s,
                %(stripe_subscriptions_pause_behavior)s, %(user_id)s, now(), now()
            )
        ),
        item AS (
            INSERT INTO app.stripe_subscription_items (
                subscription_id, id, price_id, unit_amount
            )
            VALUES (
                %(stripe_subscriptions_id)s, %(stripe_subscription_items_id)s,
                %(stripe_subscription_items_price_id)s, 999
            )
        ),
        event AS (
            INSERT INTO app.stripe_events (
                id, type, api_version, event_created_at, payload, status, last_error,
                processed_at
            )
            VALUES (
                %(stripe_events_id)s, %(stripe_events_type)s,
                %(stripe_events_api_version)s, now(), %(payload)s, 'ignored',
                %(stripe_events_last_error)s, now()
            )
        )
        UPDATE app.users AS u
        SET
            image_url = %(users_image_url)s,
            email_verified_at = now(),
            stripe_customer_id = %(stripe_customers_id)s,
            stripe_subscription_id = %(users_stripe_subscription_id)s,
            stripe_price_id = %(users_stripe_price_id)s,
            subscription_status = %(users_subscription_status)s
        WHERE u.id = %(user_id)s
        """,
        {**values, "user_id": user_id, "payload": Jsonb(payload)},
    )
