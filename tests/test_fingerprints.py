"""Fingerprints: the caller may choose the id, but not the id of a user."""

from decimal import Decimal
from uuid import uuid4

import psycopg
import pytest

from pyapp.errors import FingerprintIsUserError, FingerprintNotFoundError
from pyapp.fingerprints import get_fingerprint, upsert_fingerprint
from tests.metering import add_user


def test_fingerprint_without_an_id_is_always_new(conn: psycopg.Connection):
    one, other = (upsert_fingerprint(conn, sig_hash="x") for _ in range(2))

    assert one.id != other.id
    assert one.base_quota == Decimal(1000)


def test_fingerprint_with_an_id_is_created_once(conn: psycopg.Connection):
    fingerprint = uuid4()
    first = upsert_fingerprint(conn, fingerprint_id=fingerprint, sig_hash="x")

    assert first.id == fingerprint
    assert upsert_fingerprint(conn, fingerprint_id=fingerprint) == first
    assert get_fingerprint(conn, fingerprint_id=fingerprint) == first


def test_new_signature_replaces_the_old_one(conn: psycopg.Connection):
    fingerprint = upsert_fingerprint(conn, sig_hash="x").id

    changed = upsert_fingerprint(conn, fingerprint_id=fingerprint, sig_hash="y\0")

    assert changed.sig_hash == "y\N{REPLACEMENT CHARACTER}"


def test_user_id_is_refused_and_the_transaction_goes_on(conn: psycopg.Connection):
    user = add_user(conn)

    with pytest.raises(FingerprintIsUserError) as refusal:
        upsert_fingerprint(conn, fingerprint_id=user)

    assert refusal.value.constraint == "fingerprints_refuse_user_id"
    with pytest.raises(FingerprintNotFoundError, match=str(user)):
        get_fingerprint(conn, fingerprint_id=user)
