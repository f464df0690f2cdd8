"""The rules hold and quotas are exact after every sequence of calls.

Random sequences of messages, retries, changed resets, redeemed codes and clock jumps
go through three sessions in three time zones. After every step each quota is compared
with a recount in Python.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import psycopg
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from pyapp.errors import (
    AlreadyReferredError,
    MutualReferralError,
    ReferralError,
    ReferralLimitReachedError,
    SelfReferralError,
)
from pyapp.messages import NewMessage, record_messages
from pyapp.quota import Quota, get_fingerprint_quota, get_user_quota
from pyapp.referrals import redeem_referral
from pyapp.users import get_user
from tests.metering import (
    MICROSECOND,
    add_fingerprint,
    add_months,
    add_user,
    credits_in,
    new_message,
    period_at,
    record_one,
    referral_differences,
    usage_differences,
)

ZONES = ["UTC", "Asia/Kathmandu", "America/St_Johns"]
BONUS = Decimal(500)
LIMIT = 2

sessions = st.integers(0, len(ZONES) - 1)
any_payer = st.integers(0, 3)
any_user = st.integers(0, 2)
# Around a boundary of the payer's periods, or within 40 days after it.
instants = st.tuples(
    st.integers(-2, 5),
    st.sampled_from([-MICROSECOND, timedelta(0), MICROSECOND])
    | st.timedeltas(timedelta(0), timedelta(days=40)),
)
amounts = st.decimals(0, 100, places=6) | st.decimals(0, 1, places=15)
anchors = st.sampled_from(
    [
        datetime(2023, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(2024, 1, 29, tzinfo=UTC),
        datetime(2024, 1, 31, 12, 0, 0, 1, tzinfo=UTC),
        datetime(2024, 2, 29, 6, 30, tzinfo=UTC),
    ]
)
Instant = tuple[int, timedelta]


@dataclass
class Payer:
    """The model of a payer; a user has a referral code."""

    id: UUID
    anchor: datetime
    reset: datetime | None
    base_quota: int
    code: str | None = None
    messages: dict[UUID, NewMessage] = field(default_factory=dict)

    def at(self, instant: Instant) -> datetime:
        """Return the anchor plus months and a time."""
        return add_months(self.anchor, instant[0]) + instant[1]


class Metering(RuleBasedStateMachine):
    """Three users and a fingerprint, seen by three sessions."""

    connections: list[psycopg.Connection]
    payers: Sequence[Payer] = ()

    @initialize(anchor=anchors)
    def open_accounts(self, anchor: datetime) -> None:
        conn = self.connections[0]
        reset = add_months(anchor, 1)
        columns = {"quota_anchor": anchor, "next_quota_reset": reset, "base_quota": 90}
        self.referrals: list[tuple[UUID, UUID]] = []
        payers = []
        for _ in range(3):
            user_id = add_user(conn, referral_limit=LIMIT, **columns)
            code = get_user(conn, user_id=user_id).referral_code
            payers.append(Payer(user_id, anchor, reset, 90, code))
        fingerprint = add_fingerprint(conn, **columns)
        self.payers = [*payers, Payer(fingerprint, anchor, reset, 90)]
        self.now = anchor + timedelta(days=10)

    def message(self, payer: Payer, instant: Instant, credits: Decimal) -> NewMessage:
        column = "user_id" if payer.code else "fingerprint_id"
        finished_at = payer.at(instant)
        return new_message(
            **{column: payer.id}, finished_at=finished_at, credits=credits
        )

    @rule(session=sessions, n=any_payer, instant=instants, credits=amounts)
    def record_one(
        self, session: int, n: int, instant: Instant, credits: Decimal
    ) -> None:
        payer = self.payers[n]
        message = self.message(payer, instant, credits)
        self.record_alone(session, message)
        payer.messages[message.id] = message

    @rule(session=sessions, n=any_payer, credits=amounts, choice=st.integers(0))
    def record_again(self, session: int, n: int, credits: Decimal, choice: int) -> None:
        known = list(self.payers[n].messages.values())
        if known:
            changed = replace(known[choice % len(known)], credits=credits)
            self.record_alone(session, changed, is_new=False)

    def record_alone(
        self, session: int, message: NewMessage, *, is_new: bool = True
    ) -> None:
        assert record_one(self.connections[session], message)[0] == is_new

    @rule(
        session=sessions,
        calls=st.lists(st.tuples(any_payer, instants, amounts), max_size=8),
        is_kept=st.booleans(),
    )
    def record_many(
        self,
        session: int,
        calls: list[tuple[int, Instant, Decimal]],
        is_kept: bool,
    ) -> None:
        conn = self.connections[session]
        new = [
            (self.payers[n], self.message(self.payers[n], instant, credits))
            for n, instant, credits in calls
        ]
        old = [m for payer in self.payers for m in list(payer.messages.values())[:2]]
        batch = [message for _, message in new]
        with conn.transaction(force_rollback=not is_kept):
            result = record_messages(conn, [*old, *batch, *batch])
        assert (result.recorded, result.duplicates) == (len(new), len(old) + len(new))
        if is_kept:
            for payer, message in new:
                payer.messages[message.id] = message

    @rule(session=sessions, n=any_payer, instant=instants, moves_anchor=st.booleans())
    def move_reset(
        self, session: int, n: int, instant: Instant, moves_anchor: bool
    ) -> None:
        payer = self.payers[n]
        payer.reset = payer.at(instant)
        if moves_anchor:
            payer.anchor = payer.reset
        self.write_period(session, payer)

    @rule(session=sessions, n=any_payer)
    def never_reset(self, session: int, n: int) -> None:
        self.payers[n].reset = None
        self.write_period(session, self.payers[n])

    def write_period(self, session: int, payer: Payer) -> None:
        table = "users" if payer.code else "fingerprints"
        self.connections[session].execute(
            f"""
            UPDATE app.{table} SET quota_anchor = %s, next_quota_reset = %s
            WHERE id = %s
            """,
            (payer.anchor, payer.reset, payer.id),
        )

    @rule(session=sessions, referrer=any_user, referred=any_user)
    def redeem(self, session: int, referrer: int, referred: int) -> None:
        by, new = self.payers[referrer], self.payers[referred]
        reasons = self.reasons_against(by.id, new.id)
        refusal: type[ReferralError] | None = None
        assert by.code is not None
        try:
            redeem_referral(
                self.connections[session],
                referral_code=by.code,
                referred_id=new.id,
                credits=BONUS,
            )
        except ReferralError as exc:
            refusal = type(exc)
        else:
            self.referrals.append((by.id, new.id))
        assert refusal in reasons if reasons else refusal is None

    def reasons_against(self, by: UUID, new: UUID) -> set[type[ReferralError]]:
        count = sum(by == other for other, _ in self.referrals)
        found = {
            SelfReferralError: by == new,
            AlreadyReferredError: any(new == other for _, other in self.referrals),
            MutualReferralError: (new, by) in self.referrals,
            ReferralLimitReachedError: count == LIMIT,
        }
        return {error for error, applies in found.items() if applies}

    @rule(n=any_payer, instant=instants)
    def jump(self, n: int, instant: Instant) -> None:
        self.now = self.payers[n].at(instant)

    @invariant()
    def rules_hold(self) -> None:
        conn = self.connections[0]
        ids = [payer.id for payer in self.payers]
        assert usage_differences(conn, ids) == []
        assert referral_differences(conn, ids) == []

    @invariant()
    def quota_equals_a_recount(self) -> None:
        for n, payer in enumerate(self.payers):
            conn = self.connections[n % len(self.connections)]
            end = period_at(payer.anchor, payer.reset, self.now).end
            for at in (self.now, end):
                assert self.recount(payer, at) == self.read_quota(conn, payer, at)

    def read_quota(self, conn: psycopg.Connection, payer: Payer, at: datetime) -> Quota:
        if payer.code:
            return get_user_quota(conn, user_id=payer.id, at=at)
        return get_fingerprint_quota(conn, fingerprint_id=payer.id, at=at)

    def recount(self, payer: Payer, at: datetime) -> Quota:
        period = period_at(payer.anchor, payer.reset, at)
        used = credits_in(period, payer.messages.values())
        sides = sum(payer.id in pair for pair in self.referrals)
        quota = payer.base_quota + BONUS * sides
        return Quota(
            subject_id=payer.id,
            period_start=period.start,
            end_date=period.end,
            quota=quota,
            credits_used=used,
            subscription_active=False,
            credits_remaining=max(quota - used, Decimal(0)),
            is_exceeded=used >= quota,
            is_blocked=used >= quota,
        )


@contextmanager
def sessions_in_zones(url: str) -> Iterator[list[psycopg.Connection]]:
    connections = [psycopg.connect(url, autocommit=True) for _ in ZONES]
    try:
        for conn, zone in zip(connections, ZONES, strict=True):
            conn.execute("SELECT set_config('TimeZone', %s, FALSE)", (zone,))
        yield connections
    finally:
        for conn in connections:
            conn.close()


def test_quota_equals_a_recount_after_every_step(database: str):
    with sessions_in_zones(database) as connections:
        machine = type("Machine", (Metering,), {"connections": connections})
        run_state_machine_as_test(
            machine,
            settings=settings(max_examples=20, stateful_step_count=20, deadline=None),
        )
