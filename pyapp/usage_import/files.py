"""The files of an import: what a path names, and its bytes in UTF-8."""

from __future__ import annotations

import codecs
import io
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SUFFIXES = (".jsonl", ".ndjson", ".json")
# Codex compresses its older rollouts by zstd. The files of the others are reported.
_PACKED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
_CHUNK = 1 << 18
# Of zstd, because a piece with an error loses all of its contents.
_PIECE = 1 << 12
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
# First bytes of files that have to be unpacked first.
_PACKED = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"SQLite format 3\0": "a SQLite database",
    b"PAR1": "a Parquet file",
}
_UTF_16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


@dataclass(slots=True)
class Log:
    """A file to read; `folder` is the one in which it was looked for.

    `time` is that of its last change, and None for a pipe, whose size is 0. `damage` is
    set after reading if the rest of the file could not be read.
    """

    path: Path
    size: int
    time: datetime | None
    folder: Path | None
    damage: str = ""

    def open(self, on_bytes: Callable[[int], None]) -> BinaryIO:
        """Return the bytes of the file as it is now, unpacked and in UTF-8."""
        chunks = self._read(on_bytes)
        first = next(chunks, b"")
        packed = next((p for p in _PACKED if first.startswith(p)), None)
        if packed is not None:
            self.damage = f"{_PACKED[packed]}; unpack it first"
            return io.BytesIO()
        chunks = _chain(first, chunks)
        if first.startswith(_GZIP):
            chunks = self._unpack_gzip(chunks)
        elif first.startswith(_ZSTD):
            chunks = self._unpack_zstd(chunks)
        elif (encoding := _find_utf_16(first)) is not None:
            chunks = codecs.iterencode(
                codecs.iterdecode(chunks, encoding, "replace"), "utf-8", "replace"
            )
        return io.BufferedReader(_Chunks(chunks), _CHUNK)

    def _read(self, on_bytes: Callable[[int], None]) -> Iterator[bytes]:
        left = self.size if self.time is not None else None
        with self.path.open("rb", buffering=0) as file:
            # A session may still append to its file.
            while left is None or left > 0:
                chunk = file.read(_CHUNK if left is None else min(_CHUNK, left))
                if not chunk:
                    return
                if left is not None:
                    left -= len(chunk)
                on_bytes(len(chunk))
                yield chunk

    def _unpack_gzip(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the contents of all members of a gzip file, up to any damage."""
        member = zlib.decompressobj(wbits=31)
        is_begun = False
        for chunk in chunks:
            rest = chunk
            while rest:
                before = member.copy()
                try:
                    yield member.decompress(rest, _CHUNK)
                except zlib.error:
                    yield _before_damage(before, rest)
                    self.damage = "the gzip data is damaged from here on"
                    return
                is_begun = not member.eof
                rest = member.unconsumed_tail
                if member.eof:
                    rest = member.unused_data.lstrip(b"\0")  # padding
                    member = zlib.decompressobj(wbits=31)
        if is_begun:
            yield member.flush()
            self.damage = "the gzip data ends too early"

    def _unpack_zstd(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the contents of all frames of a zstd file, up to any damage."""
        frame = zstd.ZstdDecompressor()
        is_begun = False
        for chunk in chunks:
            for start in range(0, len(chunk), _PIECE):
                rest, is_more = chunk[start : start + _PIECE], True
                while is_more:
                    try:
                        yield frame.decompress(rest, _CHUNK)
                    except zstd.ZstdError:
                        self.damage = "the zstd data is damaged from here on"
                        return
                    is_begun = not frame.eof
                    rest, is_more = b"", not frame.needs_input
                    if frame.eof:
                        rest = frame.unused_data.lstrip(b"\0")  # padding
                        is_more = bool(rest)
                        frame = zstd.ZstdDecompressor()
        if is_begun:
            self.damage = "the zstd data ends too early"


def find_logs(paths: Iterable[Path]) -> list[Log]:
    """Return the files, and those in the folders, each once and in order.

    In a folder, also in folders in it, these are the files with one of SUFFIXES, also
    if that of a compressed file follows.

    Raises: OSError
    """
    logs: list[Log] = []
    seen: set[tuple[int, int]] = set()
    for path in paths:
        folder = path if path.is_dir() else None
        for file in (path,) if folder is None else _walk(folder, seen):
            status = file.stat()
            key = (status.st_dev, status.st_ino)
            is_file = stat.S_ISREG(status.st_mode)
            if key in seen or (folder is not None and not is_file):
                continue
            seen.add(key)
            changed = datetime.fromtimestamp(status.st_mtime, UTC)
            size, time = (status.st_size, changed) if is_file else (0, None)
            logs.append(Log(file, size, time, folder))
    return logs


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Yield the logs in *folder* by name; a folder that a link repeats comes once."""
    status = folder.stat()
    key = (status.st_dev, status.st_ino)
    if key in seen:
        return
    seen.add(key)
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _walk(path, seen)
        elif _is_log(path.name) and path.exists():
            yield path


def _is_log(name: str) -> bool:
    packed = next((s for s in _PACKED_SUFFIXES if name.endswith(s)), "")
    return name.removesuffix(packed).endswith(SUFFIXES)


class _Chunks(io.RawIOBase):
    """The chunks as a stream."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = memoryview(chunk)
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size


def _chain(first: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from chunks


def _find_utf_16(first: bytes) -> str | None:
    """Return the encoding of a text that begins with its mark or an ASCII sign."""
    for mark, encoding in _UTF_16.items():
        if first.startswith(mark):
            return encoding
    if first[:1] in (b"{", b"[") and first[1:2] == first[3:4] == b"\0":
        return "utf-16-le"
    if first[:3] in (b"\0{\0", b"\0[\0"):
        return "utf-16-be"
    return None


def _before_damage(member: zlib._Decompress, data: bytes) -> bytes:
    """Return what *data* contains before its first damaged byte."""
    unpacked = []
    try:
        for place in range(len(data)):
            unpacked.append(member.decompress(data[place : place + 1]))
    except zlib.error:
        pass
    return b"".join(unpacked)
