"""Messages: calls to models, with their token counts, cost and credits."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from psycopg import Connection

from pyapp._core.new_messages import (
    JSON,
    margin_of,
    message_values,
    one_line,
    staged_rows,
)
from pyapp._core.new_messages import NewMessage as NewMessage  # re-exported
from pyapp._core.run import (
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
from pyapp.prices import set_model_price as set_model_price  # re-exported
from pyapp.pricing import PublishedPrice

_AHEAD = "more than 24 hours ahead of the database's clock; correct the clock"


class RecordedMessage(NamedTuple):
    """The USD and credits that one record_message added, 0 unless `is_new`."""

    id: UUID
    is_new: bool
    cost: Decimal
    credits: Decimal


class RecordedMessages(NamedTuple):
    """Number, USD and credits of the new messages, and number of the known ones."""

    recorded: int
    duplicates: int
    cost: Decimal
    credits: Decimal


class Message(NamedTuple):
    """One call to a model; `subject_id` is the payer: the user, else the fingerprint.

    `cost` is in USD; times are aware, in the connection's time zone.
    """

    subject_id: UUID
    id: UUID
    user_id: UUID | None
    fingerprint_id: UUID | None
    finished_at: datetime
    recorded_at: datetime
    provider: str | None
    model: str
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    total_tokens: int
    cost: Decimal
    credits: Decimal
    latency_ms: int | None
    client_id: str | None
    client_request_id: str | None


class MessagePayload(NamedTuple):
    """A message's payload; `last_message` is the last element of the request."""

    request: JSON
    response: JSON
    last_message: JSON


class _RecordMessageRow(NamedTuple):
    is_user_known: bool
    is_fingerprint_known: bool
    is_ahead: bool
    unpriced_reason: str | None
    id: UUID
    is_new: bool
    cost: Decimal
    credits: Decimal


class _RecordMessagesRow(NamedTuple):
    recorded: int
    duplicates: int
    cost: Decimal
    credits: Decimal
    ahead_position: int | None
    unpriced_positions: list[int] | None
    unpriced_reasons: list[str] | None

    def unpriced(self) -> Iterable[tuple[int, str]]:
        reasons = map(one_line, self.unpriced_reasons or ())
        return zip(self.unpriced_positions or (), reasons, strict=True)


def record_message(
    conn: Connection[Any],
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
    recorded = fetch_one(
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
def record_messages(
    conn: Connection[Any],
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
    with atomic(conn):
        execute(conn, "create_staged_messages")
        execute(conn, "delete_staged_messages")
        rows = staged_rows(messages, user_id, fingerprint_id)
        copy_rows(conn, "copy_staged_messages", rows)
        recorded = fetch_one(
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
def get_message(
    conn: Connection[Any], *, subject_id: UUID, message_id: UUID
) -> Message:
    """Return one message of a payer.

    Raises:
        MessageNotFoundError: the payer has no message with this id.
    """
    return fetch_one(
        conn,
        Message,
        "get_message",
        missing=MessageNotFoundError(f"{subject_id} has no message {message_id}"),
        subject_id=subject_id,
        message_id=message_id,
    )


@validated
def find_message_payload(
    conn: Connection[Any], *, subject_id: UUID, message_id: UUID
) -> MessagePayload | None:
    """Return the payload, or None if it is not stored."""
    return fetch_optional(
        conn,
        MessagePayload,
        "find_message_payload",
        subject_id=subject_id,
        message_id=message_id,
    )


@validated
def list_messages(
    conn: Connection[Any],
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
    return fetch_all(
        conn,
        Message,
        "list_messages",
        subject_id=subject_id,
        before=before,
        before_id=before_id,
        limit=limit,
    )
