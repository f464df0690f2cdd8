"""What is found in the files of an import, until the largest usage of each is known.

Each response is written to a temporary file; in memory are its id and the rank of its
largest usage, less than 200 bytes.
"""

from __future__ import annotations

import marshal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, TypeAlias

from pyapp.errors import InvalidValueError
from pyapp.usage_import.fields import Object, UnknownUsageError
from pyapp.usage_import.files import Log
from pyapp.usage_import.formats import Reader
from pyapp.usage_import.formats.kinds import Unfinished
from pyapp.usage_import.lines import read_entries
from pyapp.usage_import.responses import ModelResponse, Pass, make_id
from pyapp.usage_import.unknown import find_usage

_SIZE = 8  # bytes of a length
# Places of the fields of a packed response.
_PASSES, _TIME, _COST, _FORMER_ID = map(
    ModelResponse._fields.index, ("passes", "finished_at", "cost", "former_id")
)
_PROBED = 20  # items of a list, of which one has to be of a known format
_NOT_READABLE = (AttributeError, LookupError, RecursionError, TypeError, ValueError)


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


# The number of a file; of its line, 0 for the file; a response, or the reason why there
# is none that can be read; and whether that is because its form is not known.
Found: TypeAlias = tuple[int, int, ModelResponse | str, bool]


class Collection:
    """What was found in all files, in a temporary file."""

    def __init__(self, file: IO[bytes], counts: LineCounts) -> None:
        self.kept: dict[int, int] = {}  # by the number of the file
        self._counts = counts
        self._store = _Store(file)
        self._largest: dict[bytes, int] = {}
        # Of bodies that a gateway's row supersedes.
        self._former_ids: dict[bytes, bytes] = {}
        self._sessions: set[str] = set()
        self._known_folders: set[Path] = set()
        self._log = 0

    def add_file(self, number: int, log: Log, on_bytes: Callable[[int], None]) -> None:
        """Read a file."""
        self._log, before = number, self._store.count
        formats = Reader()
        occurrences: Counter[bytes] = Counter()
        is_known, line, unknown = False, 0, self._counts.unknown
        with log.open(on_bytes) as stream:
            for line, value, reason in read_entries(stream):
                if value is None:
                    self._add_broken(line, reason)
                elif self._add_object(line, value, formats, occurrences):
                    is_known = True
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
        self.kept[number] = self._store.count - before

    def _add_object(
        self, line: int, value: Object, formats: Reader, occurrences: Counter[bytes]
    ) -> bool:
        """Keep what is in an object; return whether its format is known."""
        try:
            responses = formats.read(value, line)
        except UnknownUsageError as exc:
            self._counts.unknown += 1
            self._add_reason(line, str(exc), True)
            return True
        except InvalidValueError as exc:
            self._add_broken(line, str(exc))
            return True
        except _NOT_READABLE as exc:
            # A form that a reader does not expect must not stop the import.
            self._add_broken(line, f"not readable: {type(exc).__name__}")
            return True
        if responses is None:
            return self._add_unknown(line, value, formats, occurrences)
        if not responses:
            self._counts.without_usage += 1
        for response in responses:
            self._add_response(line, response, occurrences)
        return True

    def read(self) -> Iterator[Found]:
        """Yield what was found, in order; of each response only the largest."""
        for log, line, kept, rank, is_unknown in self._store.read():
            if rank is None:
                yield log, line, kept, is_unknown
            elif self._largest[kept[0]] == rank:
                response = _unpacked(kept)
                if response.former_id is None and self._former_ids:
                    former_id = self._former_ids.get(response.id)
                    response = response._replace(former_id=former_id)
                if not response.is_sum or response.session not in self._sessions:
                    yield log, line, response, False
                    continue
                self._counts.repeats += 1
            else:
                self._note_former_id(kept[0], kept[_FORMER_ID])
                self._counts.repeats += 1

    def find_unknown_folders(self, logs: Sequence[Log]) -> list[Path]:
        """Return the folders in which no file is of a known format."""
        folders = dict.fromkeys(log.folder for log in logs if log.folder is not None)
        unknown = [f for f in folders if f not in self._known_folders]
        self._counts.unknown_files += len(unknown)
        return unknown

    def _add_response(
        self, line: int, response: ModelResponse, occurrences: Counter[bytes]
    ) -> None:
        total = response.total
        if not (total or response.is_billed):
            self._counts.without_usage += 1
            return
        if response.is_numbered:
            occurrences[response.id] += 1
            number = occurrences[response.id]
            response = response._replace(id=make_id("nth", response.id, number))
        if response.session is not None and not response.is_sum:
            self._sessions.add(response.session)
        # One with a stated cost, by usage, before a subagent's copy, the later line.
        rank = (response.cost is not None) << 40 | total << 1
        rank |= not response.is_sidechain
        rank = rank << 64 | self._store.count << 1 | (response.former_id is not None)
        id = response.id
        if self._largest.get(id, 0) < rank:
            self._largest[id] = rank
        else:
            self._note_former_id(id, response.former_id)
        self._store.add((self._log, line, _packed(response), rank, False))

    def _note_former_id(self, id: bytes, former_id: bytes | None) -> None:
        """Note the former id of a superseded response, if the largest has none."""
        if former_id is not None and not self._largest[id] & 1:
            self._former_ids[id] = former_id

    def _add_broken(self, line: int, reason: str) -> None:
        self._counts.broken += 1
        self._add_reason(line, reason)

    def _add_unknown(
        self, line: int, value: Object, formats: Reader, occurrences: Counter[bytes]
    ) -> bool:
        """Report usage; the items of a list in an object are objects of their own."""
        for items in value.values():
            if _is_list_of_objects(items) and _are_known(items[:_PROBED], line):
                for item in items:
                    self._add_object(line, item, formats, occurrences)
                return True
        usage = find_usage(value)
        if usage is None:
            self._counts.without_usage += 1
            return False
        self._counts.unknown += 1
        self._add_reason(line, f"usage in an unknown form: {usage}", True)
        return False

    def _add_unknown_file(self, log: Log, has_usage: bool) -> None:
        if log.folder is not None and not has_usage:
            self._counts.other_files += 1
            return
        self._counts.unknown_files += 1
        self._add_reason(0, "no line is of a known format", True)

    def _add_reason(self, line: int, reason: str, is_unknown: bool = False) -> None:
        self._store.add((self._log, line, reason, None, is_unknown))


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
        while size := self._file.read(_SIZE):
            yield from marshal.loads(self._file.read(int.from_bytes(size, "big")))

    def _write(self) -> None:
        # From bytes, marshal reads twenty times as fast as from a file.
        written = marshal.dumps(self._batch)
        self._file.write(len(written).to_bytes(_SIZE, "big"))
        self._file.write(written)
        self._batch = []


def _is_list_of_objects(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) for item in value)
    )


def _are_known(items: list[Object], line: int) -> bool:
    """Tell whether one of *items* is of a known format."""
    reader = Reader()  # the file's own one would read them twice
    for item in items:
        try:
            if reader.read(item, line) is not None:
                return True
        except (InvalidValueError, *_NOT_READABLE):
            return True
    return False


def _packed(response: ModelResponse) -> list[Any]:
    """Return the response as values that marshal can write, in a fifth of the time."""
    values: list[Any] = list(response)
    values[_PASSES] = [tuple(part) for part in response.passes]
    if response.finished_at is not None:
        values[_TIME] = response.finished_at.isoformat()
    if response.cost is not None:
        values[_COST] = str(response.cost)
    return values


def _unpacked(values: list[Any]) -> ModelResponse:
    values[_PASSES] = tuple([Pass(*part) for part in values[_PASSES]])
    if values[_TIME] is not None:
        values[_TIME] = datetime.fromisoformat(values[_TIME])
    if values[_COST] is not None:
        values[_COST] = Decimal(values[_COST])
    return ModelResponse(*values)
