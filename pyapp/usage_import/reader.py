"""Reads messages from usage logs of providers and tools.

A log repeats a response: a session writes it once for each block of its content, with
counts that grow while it streams, and a fork or a subagent copies it. So the files are
read first, and each response is written to a temporary file, with its largest usage
kept in memory in less than 200 bytes; then the largest of each are yielded. A recorded
message is never changed, so a response that may still grow is left to a later import.
"""

from __future__ import annotations

import marshal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, NamedTuple
from uuid import UUID

from pyapp._core.new_messages import NewMessage
from pyapp.errors import InvalidValueError
from pyapp.pricing import add_prices, published_price
from pyapp.usage_import.fields import BadUsageError, Object
from pyapp.usage_import.files import Log
from pyapp.usage_import.formats import Reader
from pyapp.usage_import.formats.kinds import Unfinished
from pyapp.usage_import.lines import read_entries
from pyapp.usage_import.responses import ModelResponse, Pass, make_id
from pyapp.usage_import.unknown import find_usage

# The longest time between two lines of a response. Some tools never write a stop
# reason; without this limit, their responses would stay open for ever.
STILL_OPEN = timedelta(minutes=10)


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
    """A message, the line that it comes from, and the session that the line names."""

    file: str
    line: int
    message: NewMessage
    session: str | None = None


@dataclass(slots=True)
class LineCounts:
    """Numbers of objects read so far; each is a line, unless a line has several.

    `unknown` are those that carry usage in an unknown form, `unknown_files` the files
    without an object of a known format, and `other_files` such files in a folder that
    carry no usage.
    """

    messages: int = 0
    repeats: int = 0
    still_open: int = 0
    without_usage: int = 0
    broken: int = 0
    unknown: int = 0
    unknown_files: int = 0
    other_files: int = 0


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
        collected = _Collection(file, counts)
        for number, log in enumerate(logs):
            collected.add_file(number, log, on_bytes)
        done = _Progress(logs, collected.kept, on_bytes)
        for found in collected.read():
            done.advance(found.log)
            log = logs[found.log]
            name, line = str(log.path), found.line
            if isinstance(found.kept, ModelResponse):
                time = at or log.time
                for message in _messages(found.kept, time, latest, provider, counts):
                    if isinstance(message, NewMessage):
                        yield ReadMessage(name, line, message, found.kept.session)
                    else:
                        yield BrokenLine(name, line, message)
            elif found.is_unknown:
                yield UnknownUsage(name, line or None, found.kept)
            else:
                yield BrokenLine(name, line, found.kept)
        for folder in collected.find_unknown_folders(logs):
            yield UnknownUsage(str(folder), None, "no file of a known format is in it")


class _Found(NamedTuple):
    """A response, or the reason why a line or a file has none that can be read."""

    log: int
    line: int  # 0 for a file
    kept: ModelResponse | str
    is_unknown: bool = False


class _Collection:
    """What was found in all files, in a temporary file."""

    def __init__(self, file: IO[bytes], counts: LineCounts) -> None:
        self.kept: Counter[int] = Counter()  # by the number of the file
        self._counts = counts
        self._store = _Store(file)
        self._largest: dict[bytes, int] = {}
        self._sessions: set[str] = set()
        self._known_folders: set[Path] = set()
        self._log = 0

    def add_file(self, number: int, log: Log, on_bytes: Callable[[int], None]) -> None:
        """Read a file."""
        self._log = number
        formats = Reader(str(log.path))
        occurrences: Counter[bytes] = Counter()
        is_known, line, unknown = False, 0, self._counts.unknown
        with log.open(on_bytes) as stream:
            for line, value, reason in read_entries(stream):
                if value is None:
                    self._add_broken(line, reason)
                    continue
                try:
                    responses = formats.read(value, line)
                except InvalidValueError as exc:
                    is_known = True
                    self._add_broken(line, str(exc))
                    continue
                if responses is None:
                    self._add_unknown(line, value)
                    continue
                is_known = True
                if not responses:
                    self._counts.without_usage += 1
                for response in responses:
                    self._add_response(line, response, occurrences)
        for rest in formats.finish():
            if isinstance(rest, Unfinished):
                self._add_broken(rest.line, rest.reason)
            else:
                self._add_response(line, rest, occurrences)
        if is_known and log.folder is not None:
            self._known_folders.add(log.folder)
        if log.damage:
            self._add_broken(line + 1, log.damage)
        elif line and not is_known:
            self._add_unknown_file(log, self._counts.unknown > unknown)

    def read(self) -> Iterator[_Found]:
        """Yield what was found, in order; of each response only the largest."""
        for place, (log, line, kept, is_unknown) in enumerate(self._store.read()):
            if isinstance(kept, str):
                yield _Found(log, line, kept, is_unknown)
                continue
            response = _unpacked(kept)
            if self._is_counted(response, place):
                yield _Found(log, line, response)
            else:
                self._counts.repeats += 1

    def find_unknown_folders(self, logs: Sequence[Log]) -> list[Path]:
        """Return the folders in which no file is of a known format."""
        folders = dict.fromkeys(log.folder for log in logs if log.folder is not None)
        unknown = [f for f in folders if f not in self._known_folders]
        self._counts.unknown_files += len(unknown)
        return unknown

    def _is_counted(self, response: ModelResponse, place: int) -> bool:
        if response.is_sum:
            return response.session not in self._sessions
        return self._largest[response.id] == _rank(response, place)

    def _add_response(
        self, line: int, response: ModelResponse, occurrences: Counter[bytes]
    ) -> None:
        if not response.is_billed:
            self._counts.without_usage += 1
            return
        if response.is_numbered:
            occurrences[response.id] += 1
            number = occurrences[response.id]
            response = response._replace(id=make_id("nth", response.id, number))
        if response.session is not None and not response.is_sum:
            self._sessions.add(response.session)
        rank = _rank(response, self._store.count)
        self._largest[response.id] = max(rank, self._largest.get(response.id, 0))
        self._add(line, _packed(response))

    def _add_broken(self, line: int, reason: str) -> None:
        self._counts.broken += 1
        self._add(line, reason)

    def _add_unknown(self, line: int, value: Object) -> None:
        usage = find_usage(value)
        if usage is None:
            self._counts.without_usage += 1
            return
        self._counts.unknown += 1
        self._add(line, f"usage in an unknown form: {usage}", True)

    def _add_unknown_file(self, log: Log, has_usage: bool) -> None:
        if log.folder is not None and not has_usage:
            self._counts.other_files += 1
            return
        self._counts.unknown_files += 1
        self._add(0, "no line is of a known format", True)

    def _add(self, line: int, kept: object, is_unknown: bool = False) -> None:
        self.kept[self._log] += 1
        self._store.add((self._log, line, kept, is_unknown))


class _Store:
    """Values in a file, in the order in which they were added."""

    _BATCH = 500

    def __init__(self, file: IO[bytes]) -> None:
        self.count = 0
        self._file = file
        self._batch: list[Any] = []

    def add(self, value: Any) -> None:
        """Append a value that marshal can write."""
        self.count += 1
        self._batch.append(value)
        if len(self._batch) == self._BATCH:
            self._write()

    def read(self) -> Iterator[Any]:
        """Yield the values."""
        self._write()
        self._file.seek(0)
        left = self.count
        while left > 0:
            batch = marshal.load(self._file)
            left -= len(batch)
            yield from batch

    def _write(self) -> None:
        marshal.dump(self._batch, self._file)
        self._batch = []


class _Progress:
    """Reports the second half of the work by what is done of each file."""

    def __init__(
        self, logs: Sequence[Log], kept: Counter[int], on_bytes: Callable[[int], None]
    ) -> None:
        self._sizes = [log.size for log in logs]
        self._steps = [log.size // max(1, kept[n]) for n, log in enumerate(logs)]
        self._on_bytes = on_bytes

    def advance(self, log: int) -> None:
        """Report one of the values that were kept of a file."""
        self._on_bytes(self._steps[log])


def _rank(response: ModelResponse, place: int) -> int:
    """Return the sort key of the lines of one response; only the largest is counted.

    By usage, then the call before a subagent's copy, then the later line.
    """
    rank = response.total << 1 | (not response.is_sidechain)
    return rank << 64 | place


def _packed(response: ModelResponse) -> tuple[Any, ...]:
    """Return the response as values that marshal can write, in a fifth of the time."""
    time, cost = response.finished_at, response.cost
    return tuple(
        response._replace(
            passes=tuple(map(tuple, response.passes)),  # type: ignore[arg-type]
            finished_at=None if time is None else time.isoformat(),  # type: ignore[arg-type]
            cost=None if cost is None else str(cost),  # type: ignore[arg-type]
        )
    )


def _unpacked(values: tuple[Any, ...]) -> ModelResponse:
    stored = ModelResponse._make(values)
    time, cost = values[5], values[8]
    return stored._replace(
        passes=tuple(map(Pass._make, stored.passes)),
        finished_at=None if time is None else datetime.fromisoformat(time),
        cost=None if cost is None else Decimal(cost),
    )


def _messages(
    response: ModelResponse,
    time: datetime | None,
    latest: datetime | None,
    provider: str | None,
    counts: LineCounts,
) -> Iterator[NewMessage | str]:
    """Yield the messages of a response, one for each model, or a reason."""
    if _is_still_open(response):
        counts.still_open += 1
        return
    try:
        finished_at = response.finished_at or time
        if finished_at is None:
            raise BadUsageError("no time in the line, and none was given")
        if latest is not None and finished_at > latest:
            raise BadUsageError(
                f"finished at {finished_at:%Y-%m-%d %H:%M:%S} UTC, more"
                " than 24 hours ahead of the database's clock"
            )
        messages = [
            _message(response, model, passes, finished_at, provider)
            for model, passes in _by_model(response).items()
        ]
    except InvalidValueError as exc:
        counts.broken += 1
        yield str(exc)
    else:
        counts.messages += len(messages)
        yield from messages


def _is_still_open(response: ModelResponse) -> bool:
    if not response.is_open or response.finished_at is None:
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
    passes: list[Pass],
    finished_at: datetime,
    provider: str | None,
) -> NewMessage:
    # The rates of a call depend on its input tokens, so each pass is priced alone.
    is_other = model != response.model
    id = make_id("model", response.id, model) if is_other else response.id
    provider = provider or response.provider
    cost, price = response.cost, None
    if cost is None:
        price = add_prices(
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
        )
    elif is_other:
        cost = Decimal(0)  # the response's message has the cost of all models
    return NewMessage(
        id=UUID(bytes=id, version=5),
        model=model,
        input_tokens=sum(p.input_tokens for p in passes),
        cache_creation_input_tokens=sum(p.cache_creation_input_tokens for p in passes),
        cache_creation_1h_input_tokens=sum(
            p.cache_creation_1h_input_tokens for p in passes
        ),
        cache_read_input_tokens=sum(p.cache_read_input_tokens for p in passes),
        output_tokens=sum(p.output_tokens for p in passes),
        finished_at=finished_at,
        client_id=response.client_id,
        client_request_id=response.client_request_id,
        provider=provider,
        cost=cost,
        latency_ms=response.latency_ms,
        published=price,
    )
