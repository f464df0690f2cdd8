"""Reads messages from usage logs, the JSON Lines of providers and tools.

A log repeats a response: a session writes it once for each block of its content, with
counts that grow while it streams, and a fork or a subagent copies it. So the files are
read twice. The first pass stores the position of the largest usage of each response, in
less than 200 bytes; the second pass yields the messages at these positions. A recorded
message is never changed, so a response that may still grow is left to a later import.
"""

from __future__ import annotations

import json
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from pyapp._core.new_messages import NewMessage
from pyapp.errors import InvalidValueError, UnknownModelError
from pyapp.pricing import price_usage
from pyapp.usage_import.fields import BadUsageError
from pyapp.usage_import.formats import ModelResponse, read_response

MAX_LINE_BYTES = 32 * 1024 * 1024
# The longest time between two lines of a response. Some tools never write a stop
# reason; without this limit, their responses would stay open for ever.
STILL_OPEN = timedelta(minutes=10)
# White space, and the NULs and marks that interrupted writes and joined files leave.
_BLANK = b" \t\r\n\0\xef\xbb\xbf"
# A control character in a string must not lose a billed response.
_DECODER = json.JSONDecoder(strict=False)


@dataclass(frozen=True, slots=True)
class BrokenLine:
    """A line that could not be read, and the reason; the first line is 1."""

    file: str
    line: int
    reason: str


@dataclass(slots=True)
class LineCounts:
    """Numbers of lines read so far, without blank lines."""

    messages: int = 0
    repeats: int = 0
    still_open: int = 0
    without_usage: int = 0
    broken: int = 0


@dataclass(frozen=True, slots=True)
class _Source:
    name: str
    path: Path
    size: int
    number: int
    time: datetime | None  # for responses without a time


def read_usage_logs(
    paths: Iterable[Path],
    *,
    at: datetime | None = None,
    latest: datetime | None = None,
    counts: LineCounts | None = None,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Iterator[NewMessage | BrokenLine]:
    """Yield the messages of all *paths* in order, priced, each response once.

    A line that cannot be read is yielded as a BrokenLine, and the others are read. A
    message's id is computed from its response, so reading again yields the same ids. A
    response without a time gets *at*, else its file's modification time. A response
    that finished after *latest* is a BrokenLine. A response that may still be streaming
    is left out and counted as `still_open`. The payer is not set. *counts* is updated
    during reading; *on_bytes* gets the size of each part read, twice the files in all.

    Raises: OSError; MissingExtraError if prices are needed and not installed.
    """
    counts = LineCounts() if counts is None else counts
    with ExitStack() as stack:
        sources = [_source(path, n, at, stack) for n, path in enumerate(paths)]
        largest: dict[int, int] = {}
        for source in sources:
            _note_largest(source, largest, on_bytes)
        for source in sources:
            yield from _messages(source, largest, latest, counts, on_bytes)


def _source(path: Path, number: int, at: datetime | None, stack: ExitStack) -> _Source:
    status = path.stat()
    if stat.S_ISREG(status.st_mode):
        changed = datetime.fromtimestamp(status.st_mtime, UTC)
        return _Source(str(path), path, status.st_size, number, at or changed)
    # A pipe can be read only once, so it is copied to disk.
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    copy = Path(folder, "copy.jsonl")
    with path.open("rb") as pipe, copy.open("wb") as file:
        shutil.copyfileobj(pipe, file)
    return _Source(str(path), copy, copy.stat().st_size, number, at)


def _note_largest(
    source: _Source, largest: dict[int, int], on_bytes: Callable[[int], None]
) -> None:
    """Store in *largest* the place of each response's largest usage, by its id."""
    for number, raw in _lines(source, on_bytes):
        # A cheap test, which most lines of a session fail.
        if b'"usage"' not in raw:
            continue
        try:
            response = _parse(raw)
        except InvalidValueError:
            continue
        if response is not None:
            key = response.id.int
            largest[key] = max(
                largest.get(key, 0), _place(response, source.number, number)
            )


def _messages(
    source: _Source,
    largest: dict[int, int],
    latest: datetime | None,
    counts: LineCounts,
    on_bytes: Callable[[int], None],
) -> Iterator[NewMessage | BrokenLine]:
    for number, raw in _lines(source, on_bytes):
        try:
            response = _parse(raw)
            if response is None:
                counts.without_usage += bool(raw.strip(_BLANK))
                continue
            place = _place(response, source.number, number)
            if place != largest.get(response.id.int, place):
                counts.repeats += 1
                continue
            if _is_still_open(response):
                counts.still_open += 1
                continue
            message = _message(response, source.time)
            if latest is not None and message.finished_at > latest:
                raise BadUsageError(
                    f"finished at {message.finished_at:%Y-%m-%d %H:%M:%S} UTC, more"
                    " than 24 hours ahead of the database's clock"
                )
        except (InvalidValueError, UnknownModelError) as exc:
            counts.broken += 1
            yield BrokenLine(source.name, number, str(exc))
        else:
            counts.messages += 1
            yield message


def _lines(
    source: _Source, on_bytes: Callable[[int], None]
) -> Iterator[tuple[int, bytes]]:
    """Yield the lines with their numbers, up to the initial size of the file.

    A line over the limit is truncated.
    """
    number = position = 0
    limit = MAX_LINE_BYTES + 1
    with source.path.open("rb") as stream:
        # A session may still append to it.
        while position < source.size and (raw := stream.readline(limit)):
            number += 1
            read = len(raw)
            part = raw
            while len(part) == limit and not part.endswith(b"\n"):
                part = stream.readline(limit)
                read += len(part)
            position += read
            on_bytes(read)
            yield number, raw


def _parse(raw: bytes) -> ModelResponse | None:
    """Return the response in a line, or None if the line has no usage."""
    if len(raw) > MAX_LINE_BYTES:
        raise BadUsageError(f"longer than {MAX_LINE_BYTES >> 20} MiB")
    stripped = raw.strip(_BLANK)
    if not stripped:
        return None
    try:
        value = _DECODER.decode(stripped.decode("utf-8", "replace"))
        if isinstance(value, dict):
            return read_response(value)
    except json.JSONDecodeError as exc:
        raise BadUsageError(f"not JSON: {exc.msg} (column {exc.colno})") from exc
    except ValueError as exc:
        raise BadUsageError("not JSON: a number with too many digits") from exc
    except RecursionError as exc:
        raise BadUsageError("not JSON: nested too deeply") from exc
    raise BadUsageError("not a JSON object")


def _place(response: ModelResponse, source: int, line: int) -> int:
    """Return the sort key of the lines of one response; only the largest is counted.

    By usage, then the call before a subagent's copy, then the later line.
    """
    rank = response.total << 1 | (not response.is_sidechain)
    return rank << 64 | source << 40 | line


def _is_still_open(response: ModelResponse) -> bool:
    if not response.is_open or response.finished_at is None:
        return False
    # In both directions, because the clock of the log may be ahead.
    return abs(datetime.now(UTC) - response.finished_at) < STILL_OPEN


def _message(response: ModelResponse, time: datetime | None) -> NewMessage:
    finished_at = response.finished_at or time
    if finished_at is None:
        raise BadUsageError("no time in the line, and none was given")
    return NewMessage(
        id=response.id,
        model=response.model,
        input_tokens=sum(p.input_tokens for p in response.passes),
        cache_creation_input_tokens=sum(
            p.cache_creation_input_tokens for p in response.passes
        ),
        cache_read_input_tokens=sum(p.cache_read_input_tokens for p in response.passes),
        output_tokens=sum(p.output_tokens for p in response.passes),
        finished_at=finished_at,
        client_id=response.client_id,
        client_request_id=response.client_request_id,
        cost=_cost(response, finished_at) if response.cost is None else response.cost,
        latency_ms=response.latency_ms,
    )


def _cost(response: ModelResponse, finished_at: datetime) -> Decimal:
    # Each pass is priced alone: the rates of a call depend on its input tokens.
    costs = (
        price_usage(
            model=response.model,
            input_tokens=part.input_tokens,
            cache_creation_input_tokens=part.cache_creation_input_tokens,
            cache_read_input_tokens=part.cache_read_input_tokens,
            output_tokens=part.output_tokens,
            finished_at=finished_at,
            cache_creation_1h_input_tokens=part.details.get("cache_write_1h_tokens", 0),
            units={
                unit: used
                for unit, used in part.details.items()
                if unit != "cache_write_1h_tokens"
            },
            context=response.context,
        )
        for part in response.passes
    )
    return sum(costs, start=Decimal(0))
