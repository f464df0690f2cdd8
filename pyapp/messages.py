"""Messages: every call to a model, what it cost and what it is billed."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from uuid import UUID, uuid4

from pyapp._core.calls import (
    Call,
    CopyStep,
    Script,
    Step,
    many,
    one,
    optional,
    query,
    rowcount,
    script,
)
from pyapp._core.message_values import message_values, staged_rows
from pyapp._core.records import JSON, NewMessage
from pyapp._core.sanitize import storable_text
from pyapp._core.validation import check_cursor
from pyapp.errors import (
    FingerprintNotFoundError,
    InvalidValueError,
    MessageNotFoundError,
    UserNotFoundError,
)

_AHEAD = "more than 24 hours ahead of the database's clock; correct the clock"


@dataclass(frozen=True, slots=True)
class RecordedMessage:
    """What one call of record_message added: USD and credits, 0 unless `is_new`."""

    id: UUID
    is_new: bool
    cost: Decimal
    credits: Decimal


@dataclass(frozen=True, slots=True)
class RecordedMessages:
    """How many were new and their USD and credits; how many had been recorded."""

    recorded: int
    duplicates: int
    cost: Decimal
    credits: Decimal


@dataclass(frozen=True, slots=True)
class Message:
    """One call to a model; `subject_id` is who pays: the user, else the fingerprint.

    `cost` is in USD; times are aware, in the connection's time zone.
    """

    subject_id: UUID
    id: UUID
    user_id: UUID | None
    fingerprint_id: UUID | None
    finished_at: datetime
    recorded_at: datetime
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


@dataclass(frozen=True, slots=True)
class MessagePayload:
    """What was said; `last_message` is the last element of the request."""

    request: JSON
    response: JSON
    last_message: JSON


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """Sums over the calls to one model, or to all of them where `model` is None."""

    model: str | None
    messages: int
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    total_tokens: int
    cost: Decimal
    credits: Decimal


@dataclass(frozen=True, slots=True)
class Usage:
    """What something cost in all, and by model in the order of their names."""

    total: ModelUsage
    models: tuple[ModelUsage, ...]


@dataclass(frozen=True, slots=True)
class DailyUsage:
    """Sums over a payer's calls that finished on one day in UTC."""

    day: date
    messages: int
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    total_tokens: int
    cost: Decimal
    credits: Decimal


@dataclass(frozen=True, slots=True)
class _Outcome:
    is_user_known: bool
    is_fingerprint_known: bool
    is_ahead: bool
    id: UUID
    is_new: bool
    cost: Decimal
    credits: Decimal


@dataclass(frozen=True, slots=True)
class _Outcomes:
    recorded: int
    duplicates: int
    cost: Decimal
    credits: Decimal
    ahead_position: int | None


@query
def record_message(
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
) -> Call[RecordedMessage]:
    """Record one call to a model, in one round trip, and return what it added.

    The user pays, else the fingerprint. Repeating the *id* for one payer or one
    fingerprint changes nothing; without one, each call is new. So a retry after sign-in
    is no second message if it names the fingerprint, too: the payer of the first
    recording pays. The four token counts are disjoint.
    *finished_at* is aware; without it, now. *cost* is in USD; without it, computed
    from the model's published prices at that time, as *credits* are from the cost
    and *margin*, PYAPP_MARGIN if not given. Whatever *request* and *response* hold is
    stored as nearly as it can be, and not at all for a user who has been anonymized.

    Raises:
        InvalidValueError: a value that no message can have, such as a time more than
            24 hours ahead of the database's clock; nothing is recorded, and the
            transaction can go on.
        UnknownModelError: *cost* is not given and the model has no published price.
        UserNotFoundError, FingerprintNotFoundError: none such; nothing is recorded,
            and the transaction can go on.
        ConfigError: *margin* is not given, and what is configured is no amount.
    """
    message = NewMessage(
        id=uuid4() if id is None else id,
        model=model,
        input_tokens=input_tokens,
        cache_creation_input_tokens=cache_creation_input_tokens,
        cache_read_input_tokens=cache_read_input_tokens,
        output_tokens=output_tokens,
        finished_at=datetime.now(UTC) if finished_at is None else finished_at,
        user_id=user_id,
        fingerprint_id=fingerprint_id,
        client_id=client_id,
        client_request_id=client_request_id,
        cost=cost,
        credits=credits,
        latency_ms=latency_ms,
        request=request,
        response=response,
    )

    def finish(outcome: _Outcome) -> RecordedMessage:
        if outcome.is_ahead:
            raise InvalidValueError(f"finished_at {message.finished_at} is {_AHEAD}")
        if not outcome.is_user_known:
            raise UserNotFoundError(f"no user {user_id}")
        if not outcome.is_fingerprint_known:
            raise FingerprintNotFoundError(f"no fingerprint {fingerprint_id}")
        cost, credits = outcome.cost, outcome.credits
        return RecordedMessage(outcome.id, outcome.is_new, cost, credits)

    return one(_Outcome, message_values(message, margin=margin)).map(finish)


@script
def record_messages(
    messages: Iterable[NewMessage],
    *,
    user_id: UUID | None = None,
    fingerprint_id: UUID | None = None,
    margin: Decimal | None = None,
) -> Script[RecordedMessages]:
    """Record many calls to models by COPY, all or none, and return what was new.

    *user_id* and *fingerprint_id* pay for the messages that name neither. Of those
    with one id, for one payer or one fingerprint, the first counts. *messages* are
    taken one by one, so that memory stays flat; commit every few thousand, because
    other sessions that record for the same payers wait until then.

    Raises: as record_message; the message says which one.
    """
    yield Step("create_staged_messages", rowcount({}))
    yield Step("delete_staged_messages", rowcount({}))
    rows = staged_rows(messages, user_id, fingerprint_id, margin)
    yield CopyStep("copy_staged_messages", rows)
    call = one(_Outcomes, {}).map(_counts)
    counts: RecordedMessages = yield Step("record_messages", call)
    return counts


@query
def get_message(*, subject_id: UUID, message_id: UUID) -> Call[Message]:
    """Return one message of a payer.

    Raises:
        MessageNotFoundError: the payer has none with this id.
    """
    error = MessageNotFoundError(f"{subject_id} has no message {message_id}")
    parameters = {"subject_id": subject_id, "message_id": message_id}
    return one(Message, parameters, missing=lambda: error)


@query
def find_message_payload(
    *, subject_id: UUID, message_id: UUID
) -> Call[MessagePayload | None]:
    """Return what was said, or None if it was not kept."""
    parameters = {"subject_id": subject_id, "message_id": message_id}
    return optional(MessagePayload, parameters)


@query
def list_messages(
    *,
    subject_id: UUID,
    before: datetime | None = None,
    before_id: UUID | None = None,
    limit: int = 100,
) -> Call[list[Message]]:
    """Return *limit* messages of a payer, the latest to finish first.

    For the next page, *before* and *before_id* are the last one's `finished_at` and
    `id`; with *before* alone, those that finished before that instant.
    """
    check_cursor("before", before, before_id)
    cursor = {"before": before, "before_id": before_id, "limit": limit}
    return many(Message, {"subject_id": subject_id, **cursor})


@query
def get_request_usage(
    *, client_request_id: str, subject_id: UUID | None = None
) -> Call[Usage]:
    """Return what one request of a client cost, in all its calls to models.

    Clients choose the id, so give *subject_id* to count one payer's calls only.
    """
    stored = storable_text(client_request_id)
    parameters = {"client_request_id": stored, "subject_id": subject_id}
    return many(ModelUsage, parameters).map(_usage)


@query
def get_client_usage(*, client_id: str, subject_id: UUID | None = None) -> Call[Usage]:
    """Return what one run of a client cost, in all its calls to models.

    Clients choose the id, so give *subject_id* to count one payer's calls only.
    """
    parameters = {"client_id": storable_text(client_id), "subject_id": subject_id}
    return many(ModelUsage, parameters).map(_usage)


@query
def list_daily_usage(
    *, subject_id: UUID, first_day: date, last_day: date, limit: int = 1000
) -> Call[list[DailyUsage]]:
    """Return a payer's days with messages in order, both days included, in UTC."""
    days = {"first_day": first_day, "last_day": last_day, "limit": limit}
    return many(DailyUsage, {"subject_id": subject_id, **days})


def _counts(outcomes: _Outcomes) -> RecordedMessages:
    if outcomes.ahead_position is not None:
        where = f"message {outcomes.ahead_position}"
        raise InvalidValueError(f"{where}: finished_at is {_AHEAD}")
    cost, credits = outcomes.cost, outcomes.credits
    return RecordedMessages(outcomes.recorded, outcomes.duplicates, cost, credits)


def _usage(rows: list[ModelUsage]) -> Usage:
    total, *models = rows
    return Usage(total, tuple(models))
