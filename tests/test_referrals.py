"""Referrals: a class for each refusal, and credits granted once to both users."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.errors import RestrictViolation

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
from tests.metering import add_user, refer, referral_totals

BONUS = Decimal(500)
EARLIER = datetime(2026, 1, 1, tzinfo=UTC)
INSERT = """
    INSERT INTO app.referrals (referrer_id, referred_id, status, credits, completed_at)
    VALUES (%s, %s, 'completed', 500, %s)
"""
# As while a dump is restored, whose users come before its referrals.
FORGET_REFERRALS = """
    SET LOCAL session_replication_role = replica;
    DELETE FROM app.referrals;
    SET LOCAL session_replication_role = origin
"""


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


def test_redeemed_code_grants_credits_to_both(
    conn: psycopg.Connection, ada: UUID, bob: UUID
):
    made = redeem_referral(conn, referral_code=code_of(conn, ada), referred_id=bob)

    assert (made.referrer_id, made.referred_id) == (ada, bob)
    assert (made.status, made.credits) == ("completed", BONUS)
    now = conn.execute("SELECT now()").fetchone()
    assert now == (made.completed_at,)
    assert referral_totals(conn, ada, bob) == [(1, 500), (0, 500)]
    assert get_user(conn, user_id=ada).quota == Decimal(3000)


def test_bonus_is_the_callers_choice(conn: psycopg.Connection, ada: UUID, bob: UUID):
    code = code_of(conn, ada)
    redeem_referral(conn, referral_code=code, referred_id=bob, credits=Decimal("7.5"))

    assert credits_of(conn, ada, bob) == [Decimal("7.5")] * 2


@pytest.mark.usefixtures("fresh_configuration")
def test_bonus_is_the_configured_one_by_default(
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


def test_code_is_stripped_and_case_insensitive(
    conn: psycopg.Connection, ada: UUID, bob: UUID
):
    typed = f"  {code_of(conn, ada).upper()}\n"

    made = redeem_referral(conn, referral_code=typed, referred_id=bob)

    assert made.referrer_id == ada


@pytest.mark.parametrize("call", [redeem_referral, create_referral])
class TestRefusals:
    """A refusal changes nothing, and the transaction can still be used."""

    @pytest.mark.parametrize("code", ["", "ref-", f"ref-{UUID(int=0)}", "\0", "\ud800"])
    def test_unknown_code(self, conn: psycopg.Connection, bob: UUID, call, code: str):
        with pytest.raises(ReferralCodeNotFoundError):
            call(conn, referral_code=code, referred_id=bob)

        assert get_referral_summary(conn, user_id=bob).referrer_id is None

    def test_unknown_user(self, conn: psycopg.Connection, ada: UUID, call):
        with pytest.raises(UserNotFoundError):
            call(conn, referral_code=code_of(conn, ada), referred_id=uuid4())

        assert list_referrals(conn, user_id=ada) == []

    def test_own_code(self, conn: psycopg.Connection, ada: UUID, call):
        with pytest.raises(SelfReferralError):
            call(conn, referral_code=code_of(conn, ada), referred_id=ada)

        assert list_referrals(conn, user_id=ada) == []

    def test_second_referral(
        self, conn: psycopg.Connection, ada: UUID, bob: UUID, call
    ):
        first = call(conn, referral_code=code_of(conn, ada), referred_id=bob)
        before = credits_of(conn, ada, bob)
        for code in (code_of(conn, ada), code_of(conn, add_user(conn))):
            with pytest.raises(AlreadyReferredError):
                call(conn, referral_code=code, referred_id=bob)

        assert list_referrals(conn, user_id=ada) == [first]
        assert credits_of(conn, ada, bob) == before

    def test_mutual_referral(
        self, conn: psycopg.Connection, ada: UUID, bob: UUID, call
    ):
        call(conn, referral_code=code_of(conn, ada), referred_id=bob)

        with pytest.raises(MutualReferralError):
            call(conn, referral_code=code_of(conn, bob), referred_id=ada)

        assert list_referrals(conn, user_id=bob) == []

    def test_anonymized_referrer_or_referred_user(
        self, conn: psycopg.Connection, ada: UUID, bob: UUID, call
    ):
        anonymize_user(conn, user_id=ada)

        with pytest.raises(ReferralCodeNotFoundError):
            call(conn, referral_code=code_of(conn, ada), referred_id=bob)
        with pytest.raises(UserNotFoundError):
            call(conn, referral_code=code_of(conn, bob), referred_id=ada)

    def test_pending_referral_until_it_is_cancelled(
        self, conn: psycopg.Connection, ada: UUID, bob: UUID, call
    ):
        carl = add_user(conn)
        code = code_of(conn, carl)
        create_referral(conn, referral_code=code_of(conn, ada), referred_id=bob)

        with pytest.raises(AlreadyReferredError, match="ended by cancel_referral"):
            call(conn, referral_code=code, referred_id=bob)
        with pytest.raises(MutualReferralError, match="ended by cancel_referral"):
            call(conn, referral_code=code_of(conn, bob), referred_id=ada)
        cancel_referral(conn, referred_id=bob)

        assert call(conn, referral_code=code, referred_id=bob).referrer_id == carl


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
    assert completed.completed_at is not None
    assert credits_of(conn, ada, bob) == [BONUS, BONUS]
    for end in (complete_referral, cancel_referral):
        with pytest.raises(ReferralNotFoundError):
            end(conn, referred_id=bob)
    assert list_referrals(conn, user_id=ada) == [completed]
    assert credits_of(conn, ada, bob) == [BONUS, BONUS]


def test_cancelled_referral_is_deleted_and_grants_nothing(
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


def test_anonymizing_ends_only_pending_referrals(
    conn: psycopg.Connection, ada: UUID, bob: UUID
):
    eve, dan = add_user(conn), add_user(conn)
    made = redeem_referral(conn, referral_code=code_of(conn, ada), referred_id=bob)
    create_referral(conn, referral_code=code_of(conn, ada), referred_id=eve)
    create_referral(conn, referral_code=code_of(conn, dan), referred_id=ada)

    anonymize_user(conn, user_id=ada)

    assert list_referrals(conn, user_id=ada) == [made]
    assert list_referrals(conn, user_id=dan) == []
    assert credits_of(conn, ada, bob) == [BONUS, BONUS]
    with pytest.raises(ReferralNotFoundError):
        complete_referral(conn, referred_id=eve)
    create_referral(conn, referral_code=code_of(conn, bob), referred_id=eve)


def test_summary_has_code_limit_counts_credits_and_referrer(
    conn: psycopg.Connection, ada: UUID, bob: UUID
):
    carl, dora = add_user(conn), add_user(conn)
    refer(conn, ada, bob)
    refer(conn, bob, carl)
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


def test_referrals_are_listed_newest_first_by_page(database: str):
    def read_pages(conn: psycopg.Connection, referrer: UUID) -> Iterator[list[UUID]]:
        page = list_referrals(conn, user_id=referrer, limit=2)
        while page:
            yield [referral.referred_id for referral in page]
            last = page[-1]
            page = list_referrals(
                conn,
                user_id=referrer,
                before=last.created_at,
                before_id=last.referred_id,
                limit=2,
            )

    with connect(database) as conn:
        ada = add_user(conn)
        created = []
        for count in (2, 2, 1):
            # Those of one transaction have the same time.
            users = [add_user(conn) for _ in range(count)]
            for user in users:
                code = code_of(conn, ada)
                create_referral(conn, referral_code=code, referred_id=user)
            conn.commit()
            created.append(set(users))

        newest_first = [user for page in read_pages(conn, ada) for user in page]

    assert [set(newest_first[n:m]) for n, m in ((0, 1), (1, 3), (3, 5))] == [
        *reversed(created)
    ]


class TestRestores:
    """A referral of another time must be counted already; it is not granted again."""

    @staticmethod
    def add_counted(conn: psycopg.Connection, count: int, credits: int) -> UUID:
        """Add a user as a dump has it: with totals, before its referrals."""
        return add_user(conn, referral_count=count, referral_credits=credits)

    @pytest.mark.parametrize("is_copied", [True, False], ids=["COPY", "INSERT"])
    def test_restored_referrals_are_not_granted_again(
        self, conn: psycopg.Connection, is_copied: bool
    ):
        ada = self.add_counted(conn, 2, 1000)
        bob, cleo = (self.add_counted(conn, 0, 500) for _ in range(2))
        rows = [(ada, bob, EARLIER), (ada, cleo, EARLIER + timedelta(days=1))]

        if is_copied:
            columns = "referrer_id, referred_id, completed_at, status, credits"
            statement = f"COPY app.referrals ({columns}) FROM STDIN".encode()
            with conn.cursor().copy(statement) as copy:
                for row in rows:
                    copy.write_row([*row, "completed", 500])
        else:
            for row in rows:
                conn.execute(INSERT, row)

        assert referral_totals(conn, ada, bob, cleo) == [(2, 1000), (0, 500), (0, 500)]
        found = conn.execute(
            "SELECT referrer_id, referred_id, completed_at"
            " FROM app.referrals ORDER BY completed_at"
        ).fetchall()
        assert found == rows

    def test_redeemed_referrals_are_restored_with_equal_totals(
        self, conn: psycopg.Connection
    ):
        ada, bob, cleo = (add_user(conn) for _ in range(3))
        refer(conn, ada, bob)
        refer(conn, bob, cleo)
        before = referral_totals(conn, ada, bob, cleo)
        conn.execute("CREATE TEMP TABLE dump AS SELECT * FROM app.referrals")
        conn.execute("UPDATE dump SET completed_at = completed_at - interval '1 day'")
        conn.execute(FORGET_REFERRALS)

        conn.execute("INSERT INTO app.referrals SELECT * FROM dump")

        assert before == [(1, 500), (1, 1000), (0, 500)]
        assert referral_totals(conn, ada, bob, cleo) == before

    @pytest.mark.parametrize(
        "moment",
        [
            "'2026-01-01Z'",
            "now() - interval '1 microsecond'",
            "now() + interval '1 microsecond'",
            "clock_timestamp()",
            "'infinity'",
            "'-infinity'",
        ],
    )
    @pytest.mark.parametrize("way", ["insert", "update"])
    def test_uncounted_referral_of_another_time_is_refused(
        self, conn: psycopg.Connection, ada: UUID, bob: UUID, moment: str, way: str
    ):
        statement = (
            "INSERT INTO app.referrals"
            " (referrer_id, referred_id, status, credits, completed_at)"
            f" VALUES ('{ada}', '{bob}', 'completed', 500, {moment})"
        )
        if way == "update":
            create_referral(conn, referral_code=code_of(conn, ada), referred_id=bob)
            statement = (
                "UPDATE app.referrals"
                f" SET status = 'completed', completed_at = {moment}"
            )

        with pytest.raises(RestrictViolation) as caught, conn.transaction():
            conn.execute(statement.encode())

        assert caught.value.diag.constraint_name == f"referrals_grant_on_{way}"
        assert referral_totals(conn, ada, bob) == [(0, 0), (0, 0)]
        completed = "SELECT FROM app.referrals WHERE status = 'completed'"
        assert conn.execute(completed).rowcount == 0

    @pytest.mark.parametrize(
        ("referrer", "referred"),
        [((0, 500), (0, 500)), ((1, 499), (0, 500)), ((1, 500), (0, 499))],
        ids=["count", "referrer's credits", "referred user's credits"],
    )
    def test_each_total_must_include_the_referral(
        self,
        conn: psycopg.Connection,
        referrer: tuple[int, int],
        referred: tuple[int, int],
    ):
        users = [self.add_counted(conn, *totals) for totals in (referrer, referred)]

        with pytest.raises(RestrictViolation, match="restore users before referrals"):
            conn.execute(INSERT, [*users, EARLIER])

    def test_larger_credits_stay_as_they_are(self, conn: psycopg.Connection):
        ada, bob = self.add_counted(conn, 1, 9_000), self.add_counted(conn, 0, 500)

        conn.execute(INSERT, [ada, bob, EARLIER])

        assert referral_totals(conn, ada, bob) == [(1, 9_000), (0, 500)]

    def test_one_statement_may_restore_some_and_complete_others(
        self, conn: psycopg.Connection
    ):
        ada, bob = self.add_counted(conn, 1, 500), self.add_counted(conn, 0, 500)
        cleo = add_user(conn)

        conn.execute(
            f"{INSERT}, (%s, %s, 'completed', 70, NULL)".encode(),
            [ada, bob, EARLIER, ada, cleo],
        )

        assert referral_totals(conn, ada, bob, cleo) == [(2, 570), (0, 500), (0, 70)]

    def test_rolled_back_completion_is_granted_when_repeated(
        self, conn: psycopg.Connection, ada: UUID, bob: UUID
    ):
        with conn.transaction(force_rollback=True):
            refer(conn, ada, bob)
        assert referral_totals(conn, ada, bob) == [(0, 0), (0, 0)]

        refer(conn, ada, bob)

        assert referral_totals(conn, ada, bob) == [(1, 500), (0, 500)]
