"""Users, one for each e-mail address, anonymized while the bill stays; fingerprints."""

from decimal import Decimal
from uuid import UUID, uuid4

import psycopg
import pytest

from pyapp._core.connection import connect
from pyapp.errors import (
    EmailTakenError,
    FingerprintIsUserError,
    FingerprintNotFoundError,
    RuleError,
    UserNotFoundError,
)
from pyapp.fingerprints import get_fingerprint, upsert_fingerprint
from pyapp.messages import find_message_payload, list_messages, record_message
from pyapp.referrals import get_referral_summary, redeem_referral
from pyapp.sessions import create_session, find_session
from pyapp.users import (
    User,
    anonymize_user,
    create_user,
    find_user_by_email,
    get_user,
    list_users,
    mark_user_email_verified,
    set_user_email,
    set_user_profile,
)
from tests.waiting import Pair, race, run_blocked

EMAIL = "Ada@Example.com"
OTHER = "ada@example.org"


@pytest.fixture
def user(conn: psycopg.Connection) -> User:
    return create_user(conn, email=EMAIL, name="Ada")


def test_new_user_is_on_the_free_plan(conn: psycopg.Connection, user: User):
    assert (user.email, user.name) == (EMAIL, "Ada")
    assert user.quota == user.base_quota == Decimal(2500)
    assert user.referral_code.startswith("ref-")
    assert (user.referral_count, user.referral_limit) == (0, 5)
    assert not user.subscription_active
    assert user.anonymized_at is None
    assert get_user(conn, user_id=user.id) == user


def test_email_is_stripped_and_keeps_its_case(conn: psycopg.Connection):
    assert create_user(conn, email=f" \t{EMAIL}\n").email == EMAIL


def test_email_is_found_in_any_case(conn: psycopg.Connection, user: User):
    assert find_user_by_email(conn, email=f" {EMAIL.upper()} ") == user
    assert find_user_by_email(conn, email=OTHER) is None


@pytest.mark.parametrize("email", [EMAIL, "ada@example.com", " ADA@EXAMPLE.COM"])
def test_taken_email_is_refused_and_the_transaction_goes_on(
    conn: psycopg.Connection, user: User, email: str
):
    with pytest.raises(EmailTakenError) as refusal:
        create_user(conn, email=email)

    assert refusal.value.constraint == "users_lower_email_idx"
    assert list_users(conn) == [user]


@pytest.mark.parametrize(
    "email",
    [
        *("", " ", "ada", "@", "a@", "@b", "a@b@c", "a b@c", "a\n@b"),
        *("a@b\0", "a@\ud800", "a" * 320 + "@b"),
    ],
)
def test_invalid_email_is_refused_and_the_transaction_goes_on(
    conn: psycopg.Connection, email: str
):
    with pytest.raises(RuleError, match="users_email_shape_check") as refusal:
        create_user(conn, email=email)

    assert refusal.value.constraint == "users_email_shape_check"
    assert find_user_by_email(conn, email=email) is None


def test_address_outside_ascii_is_valid(conn: psycopg.Connection):
    user = create_user(conn, email="jürgen@müller.example")

    assert find_user_by_email(conn, email="jürgen@müller.example") == user


def test_one_of_many_concurrent_users_gets_an_address(database: str):
    def create(conn: psycopg.Connection) -> UUID | None:
        try:
            return create_user(conn, email=EMAIL).id
        except EmailTakenError:
            # The transaction can still be used.
            assert find_user_by_email(conn, email=EMAIL) is not None
            return None

    created = list(filter(None, race(database, [create] * 24)))

    assert len(created) == 1


def test_name_and_image_are_set_and_cleared(conn: psycopg.Connection, user: User):
    url = "https://example.com/ada.png"

    changed = set_user_profile(conn, user_id=user.id, name="Ada\0", image_url=url)

    assert (changed.name, changed.image_url) == ("Ada\N{REPLACEMENT CHARACTER}", url)
    cleared = set_user_profile(conn, user_id=user.id, name=None, image_url=None)
    assert (cleared.name, cleared.image_url) == (None, None)


def test_verification_counts_once_for_the_current_address(
    conn: psycopg.Connection, user: User
):
    verified = mark_user_email_verified(conn, user_id=user.id, email=EMAIL.lower())
    assert verified.email_verified_at is not None

    again = mark_user_email_verified(conn, user_id=user.id, email=EMAIL)

    assert again.email_verified_at == verified.email_verified_at
    with pytest.raises(UserNotFoundError):
        mark_user_email_verified(conn, user_id=user.id, email=OTHER)


def test_new_email_is_unverified_and_another_case_stays_verified(
    conn: psycopg.Connection, user: User
):
    mark_user_email_verified(conn, user_id=user.id, email=EMAIL)

    recased = set_user_email(conn, user_id=user.id, email=EMAIL.upper())
    moved = set_user_email(conn, user_id=user.id, email=OTHER)

    assert recased.email == EMAIL.upper()
    assert recased.email_verified_at is not None
    assert moved.email_verified_at is None


def test_email_of_another_user_is_refused(conn: psycopg.Connection, user: User):
    other = create_user(conn, email="bob@example.com")

    with pytest.raises(EmailTakenError):
        set_user_email(conn, user_id=other.id, email=EMAIL.lower())

    assert get_user(conn, user_id=other.id) == other


def test_users_are_listed_by_page(conn: psycopg.Connection):
    users = [create_user(conn, email=f"{n}@example.com") for n in range(5)]

    pages = [list_users(conn, limit=2)]
    while page := list_users(conn, after=pages[-1][-1].id, limit=2):
        pages.append(page)

    assert [len(page) for page in pages] == [2, 2, 1]
    listed = [user for page in pages for user in page]
    assert listed == sorted(users, key=lambda user: user.id)


def test_missing_user_is_an_error(conn: psycopg.Connection):
    missing = uuid4()
    for call in (
        lambda: get_user(conn, user_id=missing),
        lambda: set_user_profile(conn, user_id=missing, name="A", image_url=None),
        lambda: set_user_email(conn, user_id=missing, email=EMAIL),
        lambda: anonymize_user(conn, user_id=missing),
    ):
        with pytest.raises(UserNotFoundError, match=str(missing)):
            call()

    assert list_users(conn) == []


def test_anonymizing_erases_the_person_and_keeps_the_bill(
    conn: psycopg.Connection, user: User
):
    friend = create_user(conn, email="bob@example.com")
    set_user_profile(conn, user_id=user.id, name="Ada", image_url="https://x.example")
    mark_user_email_verified(conn, user_id=user.id, email=EMAIL)
    conn.execute(
        "UPDATE app.users SET stripe_customer_id = 'cus_1' WHERE id = %s", [user.id]
    )
    session = create_session(conn, user_id=user.id)
    redeem_referral(conn, referral_code=friend.referral_code, referred_id=user.id)
    message = record_message(
        conn, user_id=user.id, model="m", cost=Decimal(1), request=["secret"]
    )

    remains = anonymize_user(conn, user_id=user.id)

    assert remains == get_user(conn, user_id=user.id)
    erased = (remains.email, remains.name, remains.email_verified_at, remains.image_url)
    assert erased == (None, None, None, None)
    assert remains.anonymized_at is not None
    assert remains.stripe_customer_id == "cus_1"
    assert remains.referral_credits == Decimal(500)
    assert find_session(conn, token=session.token) is None
    kept = list_messages(conn, subject_id=user.id)
    assert [(m.id, m.cost) for m in kept] == [(message.id, Decimal(1))]
    assert find_message_payload(conn, subject_id=user.id, message_id=message.id) is None
    assert get_referral_summary(conn, user_id=friend.id).referral_count == 1
    text = conn.execute("SELECT to_jsonb(u)::text FROM app.users AS u").fetchall()
    assert "Ada" not in str(text)


def test_anonymized_user_cannot_sign_in_or_be_changed(
    conn: psycopg.Connection, user: User
):
    anonymize_user(conn, user_id=user.id)

    for call in (
        lambda: create_session(conn, user_id=user.id),
        lambda: set_user_email(conn, user_id=user.id, email=EMAIL),
        lambda: set_user_profile(conn, user_id=user.id, name="Ada", image_url=None),
        lambda: mark_user_email_verified(conn, user_id=user.id, email=EMAIL),
    ):
        with pytest.raises(UserNotFoundError):
            call()

    assert find_user_by_email(conn, email=EMAIL) is None


def test_email_of_an_anonymized_user_is_free(conn: psycopg.Connection, user: User):
    anonymize_user(conn, user_id=user.id)

    assert create_user(conn, email=EMAIL).id != user.id


def test_anonymizing_twice_keeps_the_first_time(database: str):
    with connect(database) as conn:
        user = create_user(conn, email=EMAIL)
        first = anonymize_user(conn, user_id=user.id)
        conn.commit()

        again = anonymize_user(conn, user_id=user.id)

    assert again.anonymized_at == first.anonymized_at


def test_anonymizing_deletes_an_uncommitted_session(pair: Pair):
    conn, eraser = pair
    user = create_user(conn, email=EMAIL)
    conn.commit()
    create_session(conn, user_id=user.id)

    run_blocked(conn, eraser, anonymize_user, user_id=user.id)

    assert conn.execute("SELECT count(*) FROM app.sessions").fetchone() == (0,)


def test_sign_in_during_anonymizing_is_refused(pair: Pair):
    conn, other = pair
    user = create_user(conn, email=EMAIL)
    conn.commit()
    anonymize_user(conn, user_id=user.id)

    with pytest.raises(UserNotFoundError):
        run_blocked(conn, other, create_session, user_id=user.id)


def test_sign_in_does_not_wait_for_changes_to_the_user(pair: Pair):
    conn, other = pair
    user = create_user(conn, email=EMAIL)
    conn.commit()
    set_user_profile(conn, user_id=user.id, name="Ada", image_url=None)
    other.execute("SET lock_timeout = '1s'")

    assert create_session(other, user_id=user.id).session.user_id == user.id


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


def test_fingerprint_cannot_have_the_id_of_a_user(conn: psycopg.Connection):
    user_id = create_user(conn, email=EMAIL).id

    with pytest.raises(FingerprintIsUserError) as refusal:
        upsert_fingerprint(conn, fingerprint_id=user_id)

    assert refusal.value.constraint == "fingerprints_refuse_user_id"
    with pytest.raises(FingerprintNotFoundError, match=str(user_id)):
        get_fingerprint(conn, fingerprint_id=user_id)
