"""A sample script: two users, a referral, a session, calls of a fingerprint.

A second run finds the rows and adds nothing.
"""

from typing import Any
from uuid import UUID

from psycopg import Connection

import pyapp
from pyapp import fingerprints, messages, referrals, sessions, users
from pyapp.errors import AlreadyReferredError
from pyapp.users import User

FINGERPRINT = UUID("d0d0d0d0-0000-4000-8000-000000000001")
CALLS = [UUID(int=number) for number in (1, 2, 3)]


def find_or_create(conn: Connection[Any], name: str, email: str) -> User:
    user = users.find_user_by_email(conn, email=email)
    if user is not None:
        print(f"{email} exists")
        return user
    print(f"{email} is new")
    return users.create_user(conn, email=email, name=name)


def refer(conn: Connection[Any], referrer: User, referred: User) -> None:
    try:
        referral = referrals.redeem_referral(
            conn, referral_code=referrer.referral_code, referred_id=referred.id
        )
    except AlreadyReferredError:
        print(f"{referrer.name} has already referred {referred.name}")
    else:
        print(
            f"{referrer.name} refers {referred.name}:"
            f" {referral.credits} more credits a month for each"
        )


def sign_in_and_out(conn: Connection[Any], user: User) -> None:
    token = sessions.create_session(
        conn, user_id=user.id, fingerprint_id=FINGERPRINT
    ).token
    found = sessions.find_session(conn, token=token)
    assert found is not None
    print(f"{found.user.name} signs in, is found by the token, and signs out")
    sessions.delete_session(conn, token=token)


def call_a_model(conn: Connection[Any]) -> None:
    # With ids, recording the same calls again changes nothing.
    recorded = [
        messages.record_message(
            conn,
            id=call_id,
            fingerprint_id=FINGERPRINT,
            model="claude-opus-4-5",
            input_tokens=160_000,
            output_tokens=80_000,
        )
        for call_id in CALLS
    ]
    new = sum(message.is_new for message in recorded)
    spent = sum(message.credits for message in recorded)
    print(f"A fingerprint makes {new} new calls: {spent:,.2f} credits")


with pyapp.connect() as conn:  # commits at its end, or rolls back
    ada = find_or_create(conn, "Ada", "ada@example.com")
    grace = find_or_create(conn, "Grace", "grace@example.com")
    refer(conn, ada, grace)
    fingerprints.upsert_fingerprint(conn, fingerprint_id=FINGERPRINT)
    sign_in_and_out(conn, ada)
    call_a_model(conn)
