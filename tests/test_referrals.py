"""Referrals: five refusals, each its own, and credits granted once to both."""

from decimal import Decimal
from uuid import UUID, uuid4

import psycopg
import pytest

from pyapp._core.connection import connect
from pyapp.errors import (
    AlreadyReferredError,
    InvalidValueError,
    MutualReferralError,
    ReferralCodeNotFoundError,
    ReferralLimitReachedError,
    ReferralNotFoundError,
    SelfReferralError,
    UserNotFoundError,
)
from pyapp.referrals import (
    cancel_referral,
    complete_referral,
    create_referral,
    get_referral_summary,
    list_referrals,
    redeem_referral,
)
from pyapp.users import anonymize_user, get_user
from tests.metering import add_user

BONUS = Decimal(500)


@pytest.fixture
def ada(conn: psycopg.Connection) -> UUID:
    return add_user(conn, email="ada@example.com")


@pytest.fixture
def bob(conn: psycopg.Connection) -> UUID:
    return add_user(conn, email="bob@example.com")


def code_of(conn: psycopg.Connection, user_id: UUID) -> str:
    return get_user(conn, user_id=user_id).referral_code


def credits_of(conn: psycopg.Connection, *user_ids: UUID) -> list[Decimal]:
    return [get_user(conn, user_id=user_id).referral_credits for user_id in user_ids]


def test_redeeming_completes_and_grants_to_both(
    conn: psycopg.Connection, ada: UUID, bob: UUID
):
    made = redeem_referral(conn, referral_code=code_of(conn, ada), referred_id=bob)

    assert (made.referrer_id, made.referred_id) == (ada, bob)
    assert (made.status, made.credits) == ("completed", BONUS)
    assert made.completed_at is not None
    assert credits_of(conn, ada, bob) == [BONUS, BONUS]
    assert get_user(conn, user_id=ada).quota == Decimal(3000)
    assert get_user(conn, user_id=ada).referral_count == 1
    assert get_user(conn, user_id=bob).referral_count == 0


def test_bonus_is_the_callers_to_choose(conn: psycopg.Connection, ada: UUID, bob: UUID):
    code = code_of(conn, ada)
    redeem_referral(conn, referral_code=code, referred_id=bob, credits=Decimal("7.5"))

    assert credits_of(conn, ada, bob) == [Decimal("7.5")] * 2


@pytest.mark.usefixtures("fresh_configuration")
def test_bonus_is_the_configured_one_if_none_is_given(
    conn: psycopg.Connection, ada: UUID, bob: UUID, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYAPP_REFERRAL_BONUS", "700")

    create_referral(conn, referral_code=code_of(conn, ada), referred_id=bob)
    complete_referral(conn, referred_id=bob)

    assert credits_of(conn, ada, bob) == [Decimal(700)] * 2


@pytest.mark.parametrize("credits", ["-1", "NaN", "Infinity", "1000000.01", "1e30"])
def test_bonus_is_an_amount_of_at_most_a_million(
    conn: psycopg.Connection, ada: UUID, bob: UUID, credits: str
):
    code = code_of(conn, ada)

    with pytest.raises(InvalidValueError, match="credits must be from 0 to 1000000"):
        redeem_referral(
            conn, referral_code=code, referred_id=bob, credits=Decimal(credits)
        )

    assert credits_of(conn, ada, bob) == [0, 0]


def test_code_is_read_as_people_type_it(conn: psycopg.Connection, ada: UUID, bob: UUID):
    typed = f"  {code_of(conn, ada).upper()}\n"

    assert (
        redeem_referral(conn, referral_code=typed, referred_id=bob).referrer_id == ada
    )


@pytest.mark.parametrize("refer", [redeem_referral, create_referral])
class TestRefusals:
    """They leave everything as it was, and the transaction goes on."""

    @pytest.mark.parametrize("code", ["", "ref-", f"ref-{UUID(int=0)}", "\0", "\ud800"])
    def test_unknown_code(self, conn: psycopg.Connection, bob: UUID, refer, code: str):
        with pytest.raises(ReferralCodeNotFoundError):
            refer(conn, referral_code=code, referred_id=bob)

        assert get_referral_summary(conn, user_id=bob).referrer_id is None

    def test_unknown_user(self, conn: psycopg.Connection, ada: UUID, refer):
        with pytest.raises(UserNotFoundError):
            refer(conn, referral_code=code_of(conn, ada), referred_id=uuid4())

        assert list_referrals(conn, user_id=ada) == []

    def test_own_code(self, conn: psycopg.Connection, ada: UUID, refer):
        with pytest.raises(SelfReferralError):
            refer(conn, referral_code=code_of(conn, ada), referred_id=ada)

        assert list_referrals(conn, user_id=ada) == []

    def test_second_referral(
        self, conn: psycopg.Connection, ada: UUID, bob: UUID, refer
    ):
        first = refer(conn, referral_code=code_of(conn, ada), referred_id=bob)
        before = credits_of(conn, ada, bob)
        for code in (code_of(conn, ada), code_of(conn, add_user(conn))):
            with pytest.raises(AlreadyReferredError):
                refer(conn, referral_code=code, referred_id=bob)

        assert list_referrals(conn, user_id=ada) == [first]
        assert credits_of(conn, ada, bob) == before

    def test_mutual_referral(
        self, conn: psycopg.Connection, ada: UUID, bob: UUID, refer
    ):
        refer(conn, referral_code=code_of(conn, ada), referred_id=bob)

        with pytest.raises(MutualReferralError):
            refer(conn, referral_code=code_of(conn, bob), referred_id=ada)

        assert list_referrals(conn, user_id=bob) == []

    def test_anonymized_user_neither_refers_nor_is_referred(
        self, conn: psycopg.Connection, ada: UUID, bob: UUID, refer
    ):
        anonymize_user(conn, user_id=ada)

        with pytest.raises(ReferralCodeNotFoundError):
            refer(conn, referral_code=code_of(conn, ada), referred_id=bob)
        with pytest.raises(UserNotFoundError):
            refer(conn, referral_code=code_of(conn, bob), referred_id=ada)


def test_limit_refuses_to_complete_and_not_to_create(
    conn: psycopg.Connection, ada: UUID, bob: UUID
):
    conn.execute("UPDATE app.users SET referral_limit = 0 WHERE id = %s", [ada])
    code = code_of(conn, ada)

    with pytest.raises(ReferralLimitReachedError):
        redeem_referral(conn, referral_code=code, referred_id=bob)
    pending = create_referral(conn, referral_code=code, referred_id=bob)
    with pytest.raises(ReferralLimitReachedError):
        complete_referral(conn, referred_id=bob)

    assert list_referrals(conn, user_id=ada) == [pending]
    assert credits_of(conn, ada, bob) == [0, 0]


def test_pending_referral_is_completed_once(
    conn: psycopg.Connection, ada: UUID, bob: UUID
):
    code = code_of(conn, ada)
    pending = create_referral(conn, referral_code=code, referred_id=bob)
    assert (pending.status, pending.completed_at) == ("pending", None)
    assert credits_of(conn, ada, bob) == [0, 0]

    completed = complete_referral(conn, referred_id=bob)

    assert completed.status == "completed"
    assert credits_of(conn, ada, bob) == [BONUS, BONUS]
    with pytest.raises(ReferralNotFoundError):
        complete_referral(conn, referred_id=bob)
    assert credits_of(conn, ada, bob) == [BONUS, BONUS]


def test_cancelled_referral_is_gone_and_grants_nothing(
    conn: psycopg.Connection, ada: UUID, bob: UUID
):
    pending = create_referral(conn, referral_code=code_of(conn, ada), referred_id=bob)

    assert cancel_referral(conn, referred_id=bob) == pending

    assert list_referrals(conn, user_id=ada) == []
    assert get_referral_summary(conn, user_id=ada).pending_count == 0
    for end in (cancel_referral, complete_referral):
        with pytest.raises(ReferralNotFoundError, match=f"no pending .* {bob}"):
            end(conn, referred_id=bob)
    assert credits_of(conn, ada, bob) == [0, 0]


@pytest.mark.parametrize("refer", [create_referral, redeem_referral])
def test_pending_referral_is_replaced_by_cancelling_it(
    conn: psycopg.Connection, ada: UUID, bob: UUID, refer
):
    carl = add_user(conn)
    code = code_of(conn, carl)
    create_referral(conn, referral_code=code_of(conn, ada), referred_id=bob)

    with pytest.raises(AlreadyReferredError, match="ended by cancel_referral"):
        refer(conn, referral_code=code, referred_id=bob)
    with pytest.raises(MutualReferralError, match="ended by cancel_referral"):
        refer(conn, referral_code=code_of(conn, bob), referred_id=ada)
    cancel_referral(conn, referred_id=bob)

    assert refer(conn, referral_code=code, referred_id=bob).referrer_id == carl


def test_completed_referral_is_not_cancelled(
    conn: psycopg.Connection, ada: UUID, bob: UUID
):
    made = redeem_referral(conn, referral_code=code_of(conn, ada), referred_id=bob)

    with pytest.raises(ReferralNotFoundError):
        cancel_referral(conn, referred_id=bob)

    assert list_referrals(conn, user_id=ada) == [made]


def test_referral_of_an_anonymized_user_is_not_completed(
    conn: psycopg.Connection, ada: UUID, bob: UUID
):
    create_referral(conn, referral_code=code_of(conn, ada), referred_id=bob)
    anonymize_user(conn, user_id=ada)

    with pytest.raises(ReferralNotFoundError):
        complete_referral(conn, referred_id=bob)


def test_what_was_granted_stays_when_a_user_is_anonymized(
    conn: psycopg.Connection, ada: UUID, bob: UUID
):
    made = redeem_referral(conn, referral_code=code_of(conn, ada), referred_id=bob)

    anonymize_user(conn, user_id=bob)

    assert list_referrals(conn, user_id=ada) == [made]
    assert credits_of(conn, ada, bob) == [BONUS, BONUS]


def test_summary_gives_code_limit_counts_credits_and_referrer(
    conn: psycopg.Connection, ada: UUID, bob: UUID
):
    carl, dora = add_user(conn), add_user(conn)
    redeem_referral(conn, referral_code=code_of(conn, ada), referred_id=bob)
    redeem_referral(conn, referral_code=code_of(conn, bob), referred_id=carl)
    create_referral(conn, referral_code=code_of(conn, bob), referred_id=dora)

    summary = get_referral_summary(conn, user_id=bob)

    assert summary.referral_code == code_of(conn, bob)
    assert (summary.referral_limit, summary.referral_count) == (5, 1)
    assert summary.pending_count == 1
    assert summary.referral_credits == 2 * BONUS
    assert summary.referrer_id == ada
    assert get_referral_summary(conn, user_id=ada).referrer_id is None
    with pytest.raises(UserNotFoundError):
        get_referral_summary(conn, user_id=uuid4())


def test_referrals_are_listed_newest_first_page_by_page(database: str):
    with connect(database) as conn:
        ada = add_user(conn)
        for _ in range(5):
            create_referral(
                conn, referral_code=code_of(conn, ada), referred_id=add_user(conn)
            )
            # Two of each transaction, so that times alone do not tell them apart.
            if len(list_referrals(conn, user_id=ada)) % 2:
                conn.commit()

        pages = [list_referrals(conn, user_id=ada, limit=2)]
        while page := list_referrals(
            conn,
            user_id=ada,
            before=pages[-1][-1].created_at,
            before_id=pages[-1][-1].referred_id,
            limit=2,
        ):
            pages.append(page)

        listed = [referral for page in pages for referral in page]
        assert len({referral.referred_id for referral in listed}) == 5
        times = [referral.created_at for referral in listed]
        assert times == sorted(times, reverse=True)
        assert len(set(times)) == 3
