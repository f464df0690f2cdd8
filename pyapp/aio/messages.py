# Generated from pyapp/messages.py by .ci/generate_aio.py; do not edit.
"""Messages: calls to models, with their token counts, cost and credits."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from psycopg import AsyncConnection

from pyapp._core.new_messages import (
    JSON,
    margin_of,
    message_values,
    one_line,
    staged_rows,
)
from pyapp._core.new_messages import NewMessage as NewMessage
from pyapp._core.run_async import (
    atomic,
    copy_rows,
    execute,
    fetch_all,
    fetch_one,
    fetch_optional,
)
from pyapp._core.validation import check_cursor, validated
from pyapp.errors import (
    FingerprintNotFoundError,
    InvalidValueError,
    MessageNotFoundError,
    UnknownModelError,
    UserNotFoundError,
)
from pyapp.messages import (
    _AHEAD,
    Message,
    MessagePayload,
    RecordedMessage,
    RecordedMessages,
    _RecordMessageRow,
    _RecordMessagesRow,
)
from pyapp.pricing import PublishedPrice


async def record_message(
    conn: AsyncConnection[Any],
    *,
    model: str,
    id: UUID | None = None,
    user_id: UUID | None = None,
    fingerprint_id: UUID | None = None,
    input_tokens: int = 0,
    cache_creation_input_tokens: int = 0,
    cache_read_input_tokens: int = 0,
    output_tokens: int = 0,
    finished_at: datetime | None = None,
    client_id: str | None = None,
    client_request_id: str | None = None,
    cost: Decimal | None = None,
    credits: Decimal | None = None,
    latency_ms: int | None = None,
    request: JSON = None,
    response: JSON = None,
    margin: Decimal | None = None,
    provider: str | None = None,
    cache_creation_1h_input_tokens: int = 0,
    published: PublishedPrice | None = None,
) -> RecordedMessage:
    """Record one call to a model, in one round trip, and return what it added.

    The user pays, otherwise the fingerprint. Repeating the *id* for the same payer or
    the same fingerprint changes nothing; without an id, each call is new. A retry after
    sign-in is a duplicate if it also names the fingerprint: the payer of the first
    recording pays. The four token counts are disjoint; cache writes that are kept for
    an hour are part of *cache_creation_input_tokens*. *finished_at* is aware (default:
    now). *provider* is the host that served the model.

    *cost* is in USD. By default it follows from the own price (`pyapp.prices`) of the
    provider and model in force at that time, else from *published*, by default
    `pyapp.pricing.published_price` of the same arguments. *credits* are by default
    computed from the cost and *margin*, which is PYAPP_MARGIN if not given.

    *request* and *response* may be any values: invalid characters and values that JSON
    cannot hold are replaced. They are not stored for an anonymized user.

    Raises:
        InvalidValueError: a value that no message can have, such as a time more than
            24 hours ahead of the database's clock; nothing is recorded, and the
            transaction can go on.
        UnknownModelError: *cost* is not given, and the call has no price; the message
            gives the reason. Nothing is recorded, and the transaction can go on.
        UserNotFoundError, FingerprintNotFoundError: there is no such payer; nothing is
            recorded, and the transaction can go on.
        ConfigError: *margin* is not given and PYAPP_MARGIN is not an amount.
    """
    message = NewMessage(
        id=uuid4() if id is None else id,
        user_id=user_id,
        fingerprint_id=fingerprint_id,
        finished_at=datetime.now(UTC) if finished_at is None else finished_at,
        input_tokens=input_tokens,
        cache_creation_input_tokens=cache_creation_input_tokens,
        cache_read_input_tokens=cache_read_input_tokens,
        output_tokens=output_tokens,
        latency_ms=latency_ms,
        model=model,
        client_id=client_id,
        client_request_id=client_request_id,
        cost=cost,
        credits=credits,
        request=request,
        response=response,
        provider=provider,
        cache_creation_1h_input_tokens=cache_creation_1h_input_tokens,
        published=published,
    )
    values = message_values(message)
    recorded = await fetch_one(
        conn,
        _RecordMessageRow,
        "record_message",
        margin=margin_of(margin, credits),
        **values,
    )
    if recorded.is_ahead:
        raise InvalidValueError(f"finished_at {message.finished_at} is {_AHEAD}")
    if not recorded.is_user_known:
        raise UserNotFoundError(f"no user {user_id}")
    if not recorded.is_fingerprint_known:
        raise FingerprintNotFoundError(f"no fingerprint {fingerprint_id}")
    if recorded.unpriced_reason is not None:
        raise UnknownModelError(one_line(recorded.unpriced_reason))
    return RecordedMessage(
        recorded.id, recorded.is_new, recorded.cost, recorded.credits
    )


@validated
async def record_messages(
    conn: AsyncConnection[Any],
    messages: Iterable[NewMessage],
    *,
    user_id: UUID | None = None,
    fingerprint_id: UUID | None = None,
    margin: Decimal | None = None,
    on_unpriced: Callable[[int, str], None] | None = None,
) -> RecordedMessages:
    """Record many calls to models by COPY, all or none, and return what was new.

    *user_id* and *fingerprint_id* pay for the messages that name no payer. Of messages
    with the same id, for the same payer or the same fingerprint, the first counts.
    *messages* are read one by one, so that memory stays flat; commit every few
    thousand, because other sessions that record for the same payers wait until then.

    A message without a price is an error. With *on_unpriced*, it is left out instead:
    the function is called with its position, from 1, and the reason, after the others
    are recorded.

    Raises: as record_message; the error begins with the message's position, from 1.
    """
    async with atomic(conn):
        await execute(conn, "create_staged_messages")
        await execute(conn, "delete_staged_messages")
        rows = staged_rows(messages, user_id, fingerprint_id)
        await copy_rows(conn, "copy_staged_messages", rows)
        recorded = await fetch_one(
            conn, _RecordMessagesRow, "record_messages", margin=margin_of(margin)
        )
        if recorded.ahead_position is not None:
            where = f"message {recorded.ahead_position}"
            raise InvalidValueError(f"{where}: finished_at is {_AHEAD}")
        for position, reason in recorded.unpriced():
            if on_unpriced is None:
                raise UnknownModelError(f"message {position}: {reason}")
            on_unpriced(position, reason)
    return RecordedMessages(
        recorded.recorded, recorded.duplicates, recorded.cost, recorded.credits
    )


@validated
async def get_message(
    conn: AsyncConnection[Any], *, subject_id: UUID, message_id: UUID
) -> Message:
    """Return one message of a payer.

    Raises:
        MessageNotFoundError: the payer has no message with this id.
    """
    return await fetch_one(
        conn,
        Message,
        "get_message",
        missing=MessageNotFoundError(f"{subject_id} has no message {message_id}"),
        subject_id=subject_id,
        message_id=message_id,
    )


@validated
async def find_message_payload(
    conn: AsyncConnection[Any], *, subject_id: UUID, message_id: UUID
) -> MessagePayload | None:
    """Return the payload, or None if it is not stored."""
    return await fetch_optional(
        conn,
        MessagePayload,
        "find_message_payload",
        subject_id=subject_id,
        message_id=message_id,
    )


@validated
async def list_messages(
    conn: AsyncConnection[Any],
    *,
    subject_id: UUID,
    before: datetime | None = None,
    before_id: UUID | None = None,
    limit: int = 100,
) -> list[Message]:
    """Return up to *limit* messages of a payer, the latest to finish first.

    For the next page, *before* and *before_id* are the last row's `finished_at` and
    `id`; *before* alone selects the messages that finished before that instant.
    """
    check_cursor("before", before, before_id)
    return await fetch_all(
        conn,
        Message,
        "list_messages",
        subject_id=subject_id,
        before=before,
        before_id=before_id,
        limit=limit,
    )
