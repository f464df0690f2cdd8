"""Users: created once for an address, changed, and anonymized while the bill stays."""

from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from uuid import UUID, uuid4

import psycopg
import pytest

from pyapp._core.connection import connect
from pyapp.errors import EmailTakenError, RuleError, UserNotFoundError
from pyapp.messages import find_message_payload, list_messages, record_message
from pyapp.referrals import get_referral_summary, redeem_referral
from pyapp.sessions import create_session, find_session
from pyapp.users import (
    anonymize_user,
    create_user,
    find_user_by_email,
    get_user,
    list_users,
    mark_user_email_verified,
    set_user_email,
    set_user_profile,
)
from tests.waiting import wait_for_lock

EMAIL = "Ada@Example.com"


def test_new_user_is_on_the_free_plan(conn: psycopg.Connection):
    user = create_user(conn, email=EMAIL, name="Ada")

    assert (user.email, user.name) == (EMAIL, "Ada")
    assert user.quota == user.base_quota == Decimal(2500)
    assert user.referral_code.startswith("ref-")
    assert (user.referral_count, user.referral_limit) == (0, 5)
    assert not user.subscription_active
    assert user.anonymized_at is None
    assert get_user(conn, user_id=user.id) == user


def test_email_loses_white_space_around_it_and_keeps_its_case(conn: psycopg.Connection):
    assert create_user(conn, email=f" \t{EMAIL}\n").email == EMAIL


def test_email_is_found_whatever_its_case(conn: psycopg.Connection):
    user = create_user(conn, email=EMAIL)

    assert find_user_by_email(conn, email=f" {EMAIL.upper()} ") == user
    assert find_user_by_email(conn, email="ada@example.org") is None


@pytest.mark.parametrize("email", [EMAIL, "ada@example.com", " ADA@EXAMPLE.COM"])
def test_taken_email_is_refused_and_the_transaction_goes_on(
    conn: psycopg.Connection, email: str
):
    user = create_user(conn, email=EMAIL)

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
def test_what_is_no_email_is_refused_and_the_transaction_goes_on(
    conn: psycopg.Connection, email: str
):
    with pytest.raises(RuleError, match="users_email_shape_check") as refusal:
        create_user(conn, email=email)

    assert refusal.value.constraint == "users_email_shape_check"
    assert find_user_by_email(conn, email=email) is None


def test_address_outside_ascii_is_an_email(conn: psycopg.Connection):
    user = create_user(conn, email="jürgen@müller.example")

    assert find_user_by_email(conn, email="jürgen@müller.example") == user


def test_one_of_many_gets_an_address_that_all_want_at_once(database: str):
    def create(_: int) -> UUID | None:
        with psycopg.connect(database) as conn:
            try:
                return create_user(conn, email=EMAIL).id
            except EmailTakenError:
                # The transaction is as if nothing had been asked.
                assert find_user_by_email(conn, email=EMAIL) is not None
                return None

    with ThreadPoolExecutor(8) as threads:
        created = list(filter(None, threads.map(create, range(24))))

    assert len(created) == 1


def test_name_and_image_are_set_and_cleared(conn: psycopg.Connection):
    user = create_user(conn, email=EMAIL)
    url = "https://example.com/ada.png"

    changed = set_user_profile(conn, user_id=user.id, name="Ada\0", image_url=url)

    assert (changed.name, changed.image_url) == ("Ada\N{REPLACEMENT CHARACTER}", url)
    cleared = set_user_profile(conn, user_id=user.id, name=None, image_url=None)
    assert (cleared.name, cleared.image_url) == (None, None)


def test_proof_of_an_email_counts_once_and_only_for_that_email(
    conn: psycopg.Connection,
):
    user = create_user(conn, email=EMAIL)
    verified = mark_user_email_verified(conn, user_id=user.id, email=EMAIL.lower())
    assert verified.email_verified_at is not None

    again = mark_user_email_verified(conn, user_id=user.id, email=EMAIL)

    assert again.email_verified_at == verified.email_verified_at
    with pytest.raises(UserNotFoundError, match="whose e-mail this is"):
        mark_user_email_verified(conn, user_id=user.id, email="ada@example.org")


def test_new_email_is_not_verified_and_another_case_still_is(conn: psycopg.Connection):
    user = create_user(conn, email=EMAIL)
    mark_user_email_verified(conn, user_id=user.id, email=EMAIL)

    recased = set_user_email(conn, user_id=user.id, email=EMAIL.upper())
    moved = set_user_email(conn, user_id=user.id, email="ada@example.org")

    assert recased.email == EMAIL.upper()
    assert recased.email_verified_at is not None
    assert moved.email_verified_at is None


def test_email_of_another_user_cannot_be_taken_over(conn: psycopg.Connection):
    create_user(conn, email=EMAIL)
    other = create_user(conn, email="bob@example.com")

    with pytest.raises(EmailTakenError):
        set_user_email(conn, user_id=other.id, email=EMAIL.lower())

    assert get_user(conn, user_id=other.id) == other


def test_users_are_listed_page_by_page(conn: psycopg.Connection):
    users = [create_user(conn, email=f"{n}@example.com") for n in range(5)]

    pages = [list_users(conn, limit=2)]
    while page := list_users(conn, after=pages[-1][-1].id, limit=2):
        pages.append(page)

    assert [len(page) for page in pages] == [2, 2, 1]
    listed = [user for page in pages for user in page]
    assert listed == sorted(users, key=lambda user: user.id)


def test_missing_user_is_not_found(conn: psycopg.Connection):
    nobody = uuid4()
    for call in (
        lambda: get_user(conn, user_id=nobody),
        lambda: set_user_profile(conn, user_id=nobody, name="A", image_url=None),
        lambda: set_user_email(conn, user_id=nobody, email=EMAIL),
        lambda: anonymize_user(conn, user_id=nobody),
    ):
        with pytest.raises(UserNotFoundError, match=str(nobody)):
            call()

    assert list_users(conn) == []


def test_anonymizing_erases_the_person_and_keeps_the_bill(conn: psycopg.Connection):
    friend = create_user(conn, email="bob@example.com")
    user = create_user(conn, email=EMAIL, name="Ada")
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


def test_anonymized_user_cannot_sign_in_or_be_changed(conn: psycopg.Connection):
    user = create_user(conn, email=EMAIL)
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


def test_email_of_an_anonymized_user_can_be_used_anew(conn: psycopg.Connection):
    first = create_user(conn, email=EMAIL)
    anonymize_user(conn, user_id=first.id)

    second = create_user(conn, email=EMAIL)

    assert second.id != first.id


def test_anonymizing_again_keeps_the_time_of_the_first(database: str):
    with connect(database) as conn:
        user = create_user(conn, email=EMAIL)
        first = anonymize_user(conn, user_id=user.id)
        conn.commit()

        again = anonymize_user(conn, user_id=user.id)

    assert again.anonymized_at == first.anonymized_at


def test_session_begun_before_anonymizing_is_deleted_by_it(database: str):
    with connect(database) as conn, connect(database) as eraser:
        user = create_user(conn, email=EMAIL)
        conn.commit()
        session = create_session(conn, user_id=user.id)

        with ThreadPoolExecutor() as threads:
            erasing = threads.submit(anonymize_user, eraser, user_id=user.id)
            wait_for_lock(conn, eraser)
            conn.commit()
            erasing.result()
        eraser.commit()

        assert find_session(conn, token=session.token) is None
        assert conn.execute("SELECT count(*) FROM app.sessions").fetchone() == (0,)


def test_session_begun_during_anonymizing_is_refused(database: str):
    with connect(database) as conn, connect(database) as other:
        user = create_user(conn, email=EMAIL)
        conn.commit()
        anonymize_user(conn, user_id=user.id)

        with ThreadPoolExecutor() as threads:
            signing_in = threads.submit(create_session, other, user_id=user.id)
            wait_for_lock(conn, other)
            conn.commit()
            with pytest.raises(UserNotFoundError):
                signing_in.result()


def test_sign_in_does_not_wait_for_changes_to_the_user(database: str):
    with connect(database) as conn, connect(database) as other:
        user = create_user(conn, email=EMAIL)
        conn.commit()
        set_user_profile(conn, user_id=user.id, name="Ada", image_url=None)
        other.execute("SET lock_timeout = '1s'")

        assert create_session(other, user_id=user.id).session.user_id == user.id
