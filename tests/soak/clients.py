"""Clients that write messages, referrals and sessions."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from uuid import UUID, uuid4

from pyapp.errors import (
    AlreadyReferredError,
    MutualReferralError,
    ReferralCodeNotFoundError,
    ReferralLimitReachedError,
)
from pyapp.fingerprints import upsert_fingerprint
from pyapp.messages import NewMessage, record_message, record_messages
from pyapp.referrals import redeem_referral
from pyapp.sessions import (
    create_session,
    delete_session,
    extend_session,
    find_session,
)
from pyapp.users import create_user
from tests.metering import new_message
from tests.soak.ledger import LOST, BrokenRuleError, Client, Connection, Key

# Few payers, so that writers conflict; many days, so that partitions differ.
PAYERS = 12
DAYS = 70
CODES = 4
MESSAGES = ("alone", "in batches", "by COPY")
Send = Callable[..., int]


def make_payers(conn: Connection) -> list[dict[str, UUID]]:
    """Create the payers: users and fingerprints."""
    users = [create_user(conn, email=f"payer{n}@soak.example") for n in range(PAYERS)]
    return [
        *({"user_id": user.id} for user in users),
        *({"fingerprint_id": upsert_fingerprint(conn).id} for _ in range(PAYERS)),
    ]


def write_one(client: Client, payers: Sequence[dict[str, UUID]]) -> None:
    _record(client, "alone", [_message(client, payers)], _send_each)


def write_batch(client: Client, payers: Sequence[dict[str, UUID]]) -> None:
    number = client.choose.randint(2, 10)
    messages = [_message(client, payers) for _ in range(number)]
    _record(client, "in batches", messages, _send_each)


def write_copy(client: Client, payers: Sequence[dict[str, UUID]]) -> None:
    number = client.choose.randint(20, 300)
    messages = [_message(client, payers) for _ in range(number)]
    _record(client, "by COPY", messages, _send_copy)
    client.ledger.is_over.wait(0.1)


def repeat(client: Client, payers: Sequence[dict[str, UUID]]) -> None:
    """Record confirmed messages again with other values."""
    ledger = client.ledger
    with ledger.lock:
        known = list(ledger.messages)[-1000:]
    if not known:
        ledger.is_over.wait(0.1)
        return
    chosen = client.choose.sample(known, min(len(known), 3))
    by_id = {next(iter(payer.values())): payer for payer in payers}
    again = [
        replace(_message(client, [by_id[subject]]), id=message_id)
        for subject, message_id in chosen
    ]
    send = client.choose.choice((_send_each, _send_copy))
    if client.commit(partial(send, messages=again)):
        raise BrokenRuleError("rule 7: a confirmed message was recorded twice")
    ledger.note("repeated", len(again))


def move_period(client: Client, payers: Sequence[dict[str, UUID]]) -> None:
    """Move the period of a payer, then cut its sums, as the Stripe sync does."""
    ((name, payer),) = client.choose.choice(payers).items()
    table = "users" if name == "user_id" else "fingerprints"
    anchor = datetime.now(UTC) - timedelta(days=client.choose.random() * DAYS)
    move = f"""
        UPDATE app.{table} SET quota_anchor = %(at)s,
            next_quota_reset = app.get_period_end(%(at)s, now())
        WHERE id = %(payer)s
    """
    values = {"at": anchor, "payer": payer}

    def execute(conn: Connection, *, statement: str) -> None:
        conn.execute(statement.encode(), values)

    for statement in (move, "SELECT app.cut_usage(%(payer)s)"):
        client.commit(partial(execute, statement=statement))
    client.ledger.note("periods moved")
    client.ledger.is_over.wait(0.02)


def refer(client: Client, codes: list[tuple[UUID, str]]) -> None:
    """Redeem a code that other clients redeem too, until its limit."""
    ledger = client.ledger
    if len(codes) < CODES:
        _sign_up(client, codes)
    place = client.choose.randrange(CODES)
    referrer, code = codes[place]

    def redeem(conn: Connection) -> tuple[UUID, str, bool]:
        user = create_user(conn, email=f"{uuid4()}@soak.example")
        try:
            redeem_referral(conn, referral_code=code, referred_id=user.id)
        except ReferralCodeNotFoundError as exc:
            raise BrokenRuleError("a confirmed user is not stored") from exc
        except ReferralLimitReachedError:
            return user.id, user.referral_code, False
        try:
            redeem_referral(
                conn, referral_code=user.referral_code, referred_id=referrer
            )
        except (MutualReferralError, AlreadyReferredError):
            return user.id, user.referral_code, True
        raise BrokenRuleError("rule 2: two users refer each other")

    user_id, own_code, is_done = client.commit(redeem)
    with ledger.lock:
        ledger.users[user_id] = own_code
        if is_done:
            ledger.referrals[user_id] = referrer
        else:
            codes[place] = user_id, own_code
        ledger.counts["referrals" if is_done else "refused at the limit"] += 1


def sign_in(client: Client) -> None:
    """Create, find and extend a session, and delete most of them."""
    ledger = client.ledger
    with ledger.lock:
        users = list(ledger.users)[-100:]
    if not users:
        ledger.is_over.wait(0.1)
        return
    user_id = client.choose.choice(users)
    new = client.commit(partial(create_session, user_id=user_id))
    with ledger.lock:
        ledger.sessions[new.token] = user_id
    found = client.commit(partial(find_session, token=new.token))
    if found is None or found.user.id != user_id:
        raise BrokenRuleError("a confirmed session is not found")
    client.commit(partial(extend_session, token=new.token, ttl=timedelta(days=40)))
    if client.choose.random() < 0.7:
        with ledger.lock:
            # Until the deletion is confirmed, the session may exist or not.
            del ledger.sessions[new.token]
        client.commit(partial(delete_session, token=new.token))
        with ledger.lock:
            ledger.signed_out.add(new.token)
    ledger.note("sessions")


def _sign_up(client: Client, codes: list[tuple[UUID, str]]) -> None:
    """Create the users whose codes are redeemed first."""
    emails = [f"{uuid4()}@soak.example" for _ in range(CODES)]

    def create(conn: Connection) -> list[tuple[UUID, str]]:
        users = [create_user(conn, email=email) for email in emails]
        return [(user.id, user.referral_code) for user in users]

    created = client.commit(create)
    with client.ledger.lock:
        client.ledger.users |= dict(created)
        codes.extend(created)


def _message(client: Client, payers: Sequence[dict[str, UUID]]) -> NewMessage:
    choose = client.choose
    turn = {"role": "user", "content": f"{choose.random()}"}
    return new_message(
        **choose.choice(payers),
        input_tokens=choose.randrange(10_000),
        finished_at=datetime.now(UTC) - timedelta(days=choose.random() * DAYS),
        credits=Decimal(choose.randrange(10**9)) / 10**7,
        request=[turn] if choose.random() < 0.2 else None,
    )


def _record(
    client: Client, kind: str, messages: Sequence[NewMessage], send: Send
) -> None:
    """Record the messages; repeat or give up if the connection is lost."""
    ledger, keys = client.ledger, [_key(message) for message in messages]
    is_first = True
    while True:
        try:
            new = client.commit(partial(send, messages=messages))
            break
        except LOST:
            is_first = False
            client.note_lost()
            if ledger.is_over.is_set() or client.choose.random() < 0.5:
                with ledger.lock:
                    ledger.given_up.append(keys)
                return
    # A commit without a confirmation may have succeeded.
    if new not in ({len(keys)} if is_first else {0, len(keys)}):
        raise BrokenRuleError(f"rule 7: {new} of {len(keys)} messages were new")
    with ledger.lock:
        for key, message in zip(keys, messages, strict=True):
            assert message.credits is not None
            ledger.messages[key] = message.credits, message.request is not None
        ledger.counts[kind] += len(keys)


def _send_each(conn: Connection, *, messages: Sequence[NewMessage]) -> int:
    return sum(
        record_message(
            conn,
            id=message.id,
            model=message.model,
            user_id=message.user_id,
            fingerprint_id=message.fingerprint_id,
            input_tokens=message.input_tokens,
            output_tokens=message.output_tokens,
            finished_at=message.finished_at,
            cost=message.cost,
            credits=message.credits,
            request=message.request,
        ).is_new
        # Writers for several payers lock them in the same order.
        for message in sorted(messages, key=lambda m: (_key(m)[0], m.finished_at))
    )


def _send_copy(conn: Connection, *, messages: Sequence[NewMessage]) -> int:
    return record_messages(conn, messages).recorded


def _key(message: NewMessage) -> Key:
    payer = message.user_id or message.fingerprint_id
    assert payer is not None
    return payer, message.id
