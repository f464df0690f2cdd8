"""JSON objects of a log, each with the number of the line on which it begins.

Usually a line is an object. A line can also have several, or be an array of objects; an
array and an object may extend over several lines; server-sent events have `data:` in
front. Nothing larger than MAX_BYTES is in memory, regardless of the size of the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from json.decoder import JSONDecodeError
from typing import Any, BinaryIO, NamedTuple

from orjson import loads

from pyapp.usage_import.fields import Object

MAX_BYTES = 32 * 1024 * 1024
# White space, and the NULs and marks that interrupted writes and joined files leave.
_BLANK = b" \t\r\n\0\xef\xbb\xbf"
# A control character in a string must not lose a billed response.
_decode = json.JSONDecoder(strict=False).raw_decode
# Lines of server-sent events that contain no data.
_NO_DATA = (b"event:", b"id:", b"retry:", b":", b"data: [DONE]", b"data:[DONE]")
# A line that ends so may be the beginning of an object over several lines.
_UNFINISHED = ("{", "[", ",", ":")
_SKIPPED = re.compile(r"[ \t\r\n\0\ufeff,]*")
_LINE_START = re.compile(r"\n([ \t]*)(?:\}[ \t]*,[ \t]*)?(?=\{)")
_OUTER_LINE = re.compile(r"\n(?=[^ \t\r\n}\]])")
_ITEM_START = re.compile(r"\}\s*,\s*(?=\{)")
_CHUNK = 1 << 16


class Entry(NamedTuple):
    """An object, or the reason why there is none."""

    line: int
    value: Object | None
    reason: str = ""


def read_entries(stream: BinaryIO) -> Iterator[Entry]:
    """Yield the objects of *stream*, a buffered reader of bytes in UTF-8."""
    lines = _Lines(stream)
    while raw := lines.read_line():
        stripped = raw.strip(_BLANK)
        if stripped[:1] == b"{" and len(raw) <= MAX_BYTES:
            try:
                value = loads(stripped)
            except JSONDecodeError:
                yield from _read_object(lines, raw, stripped)
            else:
                yield Entry(lines.number, value)
        elif stripped:
            yield from _read_other(lines, raw, stripped)


def _read_object(lines: _Lines, raw: bytes, stripped: bytes) -> Iterator[Entry]:
    """Yield the objects of a line that begins as one, and is not plain JSON."""
    text = stripped.decode("utf-8", "replace")
    try:
        value, end = _decode(text)
    except (ValueError, RecursionError) as exc:
        if _may_continue(exc, text) and _is_open(text):
            yield from _Values(lines, raw).read_object(_reason(exc))
        else:
            yield Entry(lines.number, None, _reason(exc))
        return
    end = _after_blanks(text, end)
    if end < len(text) and text[end] not in "{[":
        # Not another object: the line is damaged, and so may be this object.
        reason = f"not JSON: text after the object (column {end + 1})"
        yield Entry(lines.number, None, reason)
    else:
        yield Entry(lines.number, value)
        yield from _read_rest(lines, text, end)


def _read_other(lines: _Lines, raw: bytes, stripped: bytes) -> Iterator[Entry]:
    """Yield the objects of a line that is not one object."""
    if stripped.startswith(b"["):
        yield from _Values(lines, raw).read_array()
        return
    lines.skip_line(raw)
    if len(raw) > MAX_BYTES:
        yield Entry(lines.number, None, _too_long())
        return
    if stripped.startswith(_NO_DATA):
        return
    if stripped.startswith(b"data:"):
        stripped = stripped[len(b"data:") :].strip(_BLANK)
    yield from _read_rest(lines, stripped.decode("utf-8", "replace"), 0)


def _read_rest(lines: _Lines, text: str, start: int) -> Iterator[Entry]:
    """Yield the objects of a line, *text*, from *start* on."""
    while (start := _after_blanks(text, start)) < len(text):
        try:
            value, start = _decode(text, start)
        except (ValueError, RecursionError) as exc:
            if text[start] == "{" and _may_continue(exc, text) and _is_open(text):
                rest = text[start:].encode() + b"\n"
                yield from _Values(lines, rest).read_object(_reason(exc))
            else:
                yield Entry(lines.number, None, _reason(exc))
            return
        yield from _entries(lines.number, value)
        if not isinstance(value, dict | list):
            return  # the rest is not JSON either, such as a row of a table


def _entries(line: int, value: Any) -> Iterator[Entry]:
    """Yield *value*, or the objects in it if it is an array."""
    for item in value if isinstance(value, list) else (value,):
        if isinstance(item, dict):
            yield Entry(line, item)
        else:
            yield Entry(line, None, "not a JSON object")


class _Lines:
    """The lines of a stream; what was read too far can be given back."""

    def __init__(self, stream: BinaryIO) -> None:
        self.number = 0
        self._readline = stream.readline
        self._read = stream.read
        self._held = b""

    def read_line(self) -> bytes:
        """Return the next line; of a long one, what is needed at first.

        That is the beginning of an array, and else MAX_BYTES and one more.
        """
        self.number += 1
        held, newline, self._held = self._held.partition(b"\n")
        if newline:
            return held + newline
        raw = held + self._readline(_CHUNK)
        if len(raw) >= _CHUNK and raw[-1:] != b"\n" and raw.lstrip()[:1] != b"[":
            raw += self._readline(MAX_BYTES + 1 - len(raw))
        return raw

    def skip_line(self, raw: bytes) -> None:
        """Read the rest of the line that begins with *raw*."""
        while len(raw) > MAX_BYTES and not raw.endswith(b"\n"):
            raw = self._readline(MAX_BYTES + 1)

    def read_more(self, size: int) -> bytes:
        """Return up to *size* bytes, across lines."""
        if self._held:
            held, self._held = self._held, b""
            return held
        return self._read(size)

    def give_back(self, rest: bytes, line: int) -> None:
        """Read *rest*, which begins on *line*, again."""
        self._held = rest + self._held
        self.number = line - 1


class _Values:
    """Objects over several lines, and the items of an array of any length."""

    def __init__(self, lines: _Lines, raw: bytes) -> None:
        self._lines = lines
        self._text = ""
        self._place = 0  # of the next value in the text
        self._line = lines.number  # on which that place is
        self._partial = b""  # an incomplete character at the end
        self._is_end = False
        self._is_broken = False
        self._add(raw)
        self._advance(_after_blanks(self._text, 0))

    def read_object(self, reason: str) -> Iterator[Entry]:
        """Yield the object; *reason* says why its first line is not all of it."""
        yield from self._read_value(reason)
        self._give_back()

    def read_array(self) -> Iterator[Entry]:
        """Yield the objects of the array."""
        start = self._line
        self._advance(self._place + 1)
        while True:
            self._advance(_after_blanks(self._text, self._place))
            if self._place < len(self._text):
                if self._text[self._place] == "]":
                    self._advance(self._place + 1)
                    break
                yield from self._read_value()
            elif not self._fill():
                if not self._is_broken:
                    yield Entry(start, None, "not JSON: the array does not end")
                break
        self._give_back()

    def _read_value(self, reason: str = "") -> Iterator[Entry]:
        while True:
            try:
                value, end = _decode(self._text, self._place)
            except (ValueError, RecursionError) as exc:
                is_long = len(self._text) - self._place > MAX_BYTES
                if not is_long and _may_continue(exc, self._text) and self._fill():
                    continue
                yield Entry(
                    self._line, None, _too_long() if is_long else reason or _reason(exc)
                )
                if reason:
                    self._skip_lines()
                else:
                    self._is_broken = True
                    self._skip_value()
                return
            # A number at the end of the text may have more digits.
            if end < len(self._text) or isinstance(value, dict) or not self._fill():
                yield from _entries(self._line, value)
                self._advance(end)
                return

    def _fill(self) -> bool:
        """Read as much again; return false at the end of the file."""
        if self._is_end:
            return False
        # The beginning of the value's line is needed for its indentation.
        kept = max(0, self._place - 1000, self._text.rfind("\n", 0, self._place))
        self._text = self._text[kept:]
        self._place -= kept
        more = self._lines.read_more(max(_CHUNK, len(self._text)))
        self._is_end = not more
        self._add(more)
        return not self._is_end

    def _add(self, more: bytes) -> None:
        more = self._partial + more
        whole = len(more) if self._is_end else _whole_characters(more)
        self._text += more[:whole].decode("utf-8", "replace")
        self._partial = more[whole:]

    def _advance(self, place: int) -> None:
        self._line += self._text.count("\n", self._place, place)
        self._place = place

    def _skip_lines(self) -> None:
        """Go to the first line that cannot be of an object that began above it.

        In a log with an object a line, that is the next line.
        """
        while True:
            match = _OUTER_LINE.search(self._text, self._place)
            if match is not None:
                self._advance(match.end())
                return
            if not self._go_on():
                return

    def _skip_value(self) -> None:
        """Go to the next place at which a value can begin: a line, else an item."""
        indent = self._indent()
        while True:
            for match in _LINE_START.finditer(self._text, self._place):
                if len(match[1]) <= indent:
                    self._advance(match.end())
                    return
            found = _ITEM_START.search(self._text, self._place + 1)
            if found and "\n" not in self._text[self._place : found.start()]:
                self._advance(found.end())
                return
            if not self._go_on():
                return

    def _go_on(self) -> bool:
        """Skip the text and read more of it; return false at the end of the file."""
        # What is looked for may have begun in the last characters.
        self._advance(max(self._place, len(self._text) - 200))
        if self._fill():
            return True
        self._advance(len(self._text))
        return False

    def _indent(self) -> int:
        """Return the width of the blanks before the first value of the line."""
        start = self._text.rfind("\n", 0, self._place) + 1
        line = self._text[start : self._place + 1]
        return len(line) - len(line.lstrip(" \t"))

    def _give_back(self) -> None:
        rest = self._text[self._place :].encode() + self._partial
        self._lines.give_back(rest, self._line)


def _after_blanks(text: str, start: int) -> int:
    """Return the place of the next character that is not between two values."""
    match = _SKIPPED.match(text, start)
    return match.end() if match else start


def _whole_characters(data: bytes) -> int:
    """Return the length of *data* without an incomplete character at its end."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte >= 0xC0:
            size = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if size > back else len(data)
        if byte < 0x80:
            break
    return len(data)


def _may_continue(exc: Exception, text: str) -> bool:
    """Tell whether more text could make a valid value of *text*."""
    if not isinstance(exc, JSONDecodeError):
        return False
    if exc.msg.startswith("Unterminated"):
        return True
    # A word or an escape may be incomplete at the end, and blanks may follow.
    end = text[-200:].rstrip()
    return exc.pos >= len(text) - min(200, len(text)) + len(end) - len("-Infinity")


def _is_open(text: str) -> bool:
    """Tell whether a line can be the first of an object over several lines."""
    return text.endswith(_UNFINISHED)


def _reason(exc: Exception) -> str:
    if isinstance(exc, JSONDecodeError):
        return f"not JSON: {exc.msg} (column {exc.colno})"
    if isinstance(exc, RecursionError):
        return "not JSON: nested too deeply"
    return "not JSON: a number with too many digits"


def _too_long() -> str:
    return f"longer than {MAX_BYTES >> 20} MiB"
