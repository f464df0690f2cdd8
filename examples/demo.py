"""A sample script: two users, a referral, a session, calls of an anonymous device.

Run it again, and it finds all of that there and adds nothing.
"""

from typing import Any
from uuid import UUID

from psycopg import Connection

import pyapp
from pyapp import fingerprints, messages, referrals, sessions, users
from pyapp.errors import AlreadyReferredError
from pyapp.users import User

DEVICE = UUID("d0d0d0d0-0000-4000-8000-000000000001")
CALLS = [UUID(int=number) for number in (1, 2, 3)]


def find_or_create(conn: Connection[Any], name: str, email: str) -> User:
    user = users.find_user_by_email(conn, email=email)
    if user is not None:
        print(f"{email} is already there")
        return user
    print(f"{email} is new")
    return users.create_user(conn, email=email, name=name)


def refer(conn: Connection[Any], referrer: User, referred: User) -> None:
    try:
        referral = referrals.redeem_referral(
            conn, referral_code=referrer.referral_code, referred_id=referred.id
        )
    except AlreadyReferredError:
        print(f"{referrer.name} has referred {referred.name} before")
    else:
        print(
            f"{referrer.name} refers {referred.name}:"
            f" {referral.credits} more credits a month for each"
        )


def sign_in_and_out(conn: Connection[Any], user: User) -> None:
    token = sessions.create_session(conn, user_id=user.id, fingerprint_id=DEVICE).token
    found = sessions.find_session(conn, token=token)
    assert found is not None
    print(f"{found.user.name} signs in, is known by a token, and signs out")
    sessions.delete_session(conn, token=token)


def ask_a_model(conn: Connection[Any]) -> None:
    # The ids make it harmless to record the same calls again.
    recorded = [
        messages.record_message(
            conn,
            id=call_id,
            fingerprint_id=DEVICE,
            model="claude-opus-4-5",
            input_tokens=160_000,
            output_tokens=80_000,
        )
        for call_id in CALLS
    ]
    new = sum(message.is_new for message in recorded)
    spent = sum(message.credits for message in recorded)
    print(f"An anonymous device makes {new} new calls: {spent:,.2f} credits")


with pyapp.connect() as conn:  # commits at its end, or rolls all of it back
    ada = find_or_create(conn, "Ada", "ada@example.com")
    grace = find_or_create(conn, "Grace", "grace@example.com")
    refer(conn, ada, grace)
    fingerprints.upsert_fingerprint(conn, fingerprint_id=DEVICE)
    sign_in_and_out(conn, ada)
    ask_a_model(conn)
