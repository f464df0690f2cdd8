"""Reads messages from usage logs of providers and tools.

A log repeats a response: a session writes it once for each block of its content, with
counts that grow while it streams, and a fork or a subagent copies it. So the files are
read first, and each response is written to a temporary file, with its largest usage
kept in memory in less than 200 bytes; then the largest of each are yielded. A recorded
message is never changed, so a response that may still grow is left to a later import.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple
from uuid import UUID

from pyapp._core.new_messages import NewMessage
from pyapp.errors import InvalidValueError
from pyapp.pricing import add_prices, published_price
from pyapp.published_prices.hosts import named_provider
from pyapp.usage_import.collection import Collection, LineCounts
from pyapp.usage_import.fields import BadUsageError
from pyapp.usage_import.files import Log
from pyapp.usage_import.responses import ModelResponse, Pass, make_id

# The longest time between two lines of a response. Some tools never write a stop
# reason; without this limit, their responses would stay open for ever.
STILL_OPEN = timedelta(minutes=10)
_SHOWN_BYTES = 1 << 20  # of progress in one step


@dataclass(frozen=True, slots=True)
class BrokenLine:
    """A line that could not be read, and the reason; the first line is 1."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class UnknownUsage:
    """A line that carries usage in an unknown form, or a file of an unknown format.

    `line` is None for a file.
    """

    file: str
    line: int | None
    reason: str


class ReadMessage(NamedTuple):
    """A message, the line that it comes from, and the session that the line names.

    `former_id` is the id that the message has if an earlier version recorded it.
    """

    file: str
    line: int
    message: NewMessage
    session: str | None = None
    former_id: UUID | None = None


def read_usage_logs(
    logs: Sequence[Log],
    *,
    at: datetime | None = None,
    latest: datetime | None = None,
    provider: str | None = None,
    counts: LineCounts | None = None,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Iterator[ReadMessage | BrokenLine | UnknownUsage]:
    """Yield the messages of all *logs* in order, each response once.

    A line that cannot be read is yielded as a BrokenLine, and the others are read. A
    message's id is computed from its response, so reading again yields the same ids. A
    response without a time gets *at*, else its file's modification time. A response
    that finished after *latest* is a BrokenLine. A response that may still be streaming
    is left out and counted as `still_open`. *provider* is the host of all messages, by
    default the one that the line names or its format implies. A message has the cost
    that its line states, else its published price; the payer is not set. *counts* is
    updated during reading; *on_bytes* gets the size of each part read, twice the files
    in all.

    Raises: OSError
    """
    counts = LineCounts() if counts is None else counts
    with tempfile.TemporaryFile() as file:
        collected = Collection(file, counts)
        for number, log in enumerate(logs):
            collected.add_file(number, log, on_bytes)
        # The second half of the work is shown by what is done of each file.
        steps = [log.size // max(1, collected.kept[n]) for n, log in enumerate(logs)]
        names = [str(log.path) for log in logs]
        done = 0
        for number, line, kept, is_unknown in collected.read():
            done += steps[number]
            if done > _SHOWN_BYTES:
                on_bytes(done)
                done = 0
            if isinstance(kept, ModelResponse):
                time = at or logs[number].time
                messages = _read_messages(kept, time, latest, provider, counts)
                if isinstance(messages, str):
                    yield BrokenLine(names[number], line, messages)
                    continue
                former = None
                if kept.former_id is not None:
                    former = UUID(bytes=kept.former_id, version=5)
                for message in messages:
                    yield ReadMessage(
                        names[number], line, message, kept.session, former
                    )
            elif is_unknown:
                yield UnknownUsage(names[number], line or None, kept)
            else:
                yield BrokenLine(names[number], line, kept)
        on_bytes(done)
        for folder in collected.find_unknown_folders(logs):
            yield UnknownUsage(str(folder), None, "no file of a known format is in it")


def _read_messages(
    response: ModelResponse,
    time: datetime | None,
    latest: datetime | None,
    provider: str | None,
    counts: LineCounts,
) -> list[NewMessage] | str:
    """Return the messages of a response, one for each model, or why it has none."""
    if response.is_open and _is_still_open(response):
        counts.still_open += 1
        return []
    try:
        finished_at = response.finished_at or time
        if finished_at is None:
            raise BadUsageError("no time in the line, and none was given")
        if latest is not None and finished_at > latest:
            raise BadUsageError(
                f"finished at {finished_at:%Y-%m-%d %H:%M:%S} UTC, more"
                " than 24 hours ahead of the database's clock"
            )
        found = [
            _message(response, model, passes, finished_at, provider)
            for model, passes in _by_model(response).items()
        ]
    except InvalidValueError as exc:
        counts.broken += 1
        return str(exc)
    counts.messages += len(found)
    return found


def _is_still_open(response: ModelResponse) -> bool:
    if response.finished_at is None:
        return False
    # In both directions, because the clock of the log may be ahead.
    return abs(datetime.now(UTC) - response.finished_at) < STILL_OPEN


def _by_model(response: ModelResponse) -> dict[str, list[Pass]]:
    models: dict[str, list[Pass]] = {response.model: []}
    for part in response.passes:
        models.setdefault(part.model or response.model, []).append(part)
    return models


def _message(
    response: ModelResponse,
    model: str,
    passes: Sequence[Pass],
    finished_at: datetime,
    provider: str | None,
) -> NewMessage:
    is_other = model != response.model
    id = make_id("model", response.id, model) if is_other else response.id
    provider = provider or response.provider or _named_provider(model)
    cost, published = response.cost, None
    if cost is None:
        # Each pass is priced alone: the rates of a call depend on its input tokens.
        prices = [
            published_price(
                model=model,
                provider=provider,
                finished_at=finished_at,
                context=response.context,
                input_tokens=part.input_tokens,
                cache_creation_input_tokens=part.cache_creation_input_tokens,
                cache_read_input_tokens=part.cache_read_input_tokens,
                output_tokens=part.output_tokens,
                cache_creation_1h_input_tokens=part.cache_creation_1h_input_tokens,
                units=part.units,
            )
            for part in passes
        ]
        published = prices[0] if len(prices) == 1 else add_prices(prices)
    elif is_other:
        cost = Decimal(0)  # the response's message has the cost of all models
    whole = passes[0] if len(passes) == 1 else _sum(passes)
    return NewMessage(
        id=UUID(bytes=id, version=5),
        model=model,
        input_tokens=whole.input_tokens,
        cache_creation_input_tokens=whole.cache_creation_input_tokens,
        cache_creation_1h_input_tokens=whole.cache_creation_1h_input_tokens,
        cache_read_input_tokens=whole.cache_read_input_tokens,
        output_tokens=whole.output_tokens,
        finished_at=finished_at,
        client_id=response.client_id,
        client_request_id=response.client_request_id,
        provider=provider,
        cost=cost,
        latency_ms=response.latency_ms,
        published=published,
    )


_named_provider = lru_cache(maxsize=1_000)(named_provider)


def _sum(passes: Sequence[Pass]) -> Pass:
    """Return the counts of several passes."""
    return Pass(
        input_tokens=sum(p.input_tokens for p in passes),
        cache_creation_input_tokens=sum(p.cache_creation_input_tokens for p in passes),
        cache_read_input_tokens=sum(p.cache_read_input_tokens for p in passes),
        output_tokens=sum(p.output_tokens for p in passes),
        cache_creation_1h_input_tokens=sum(
            p.cache_creation_1h_input_tokens for p in passes
        ),
    )
