"""Folders, packed files and other encodings are read; what cannot be is named."""

import bz2
import codecs
import gzip
import json
import lzma
import os
import sys
import threading
import tracemalloc

import pytest

from pyapp.messages import NewMessage
from pyapp.usage_import.collection import LineCounts
from pyapp.usage_import.files import find_logs
from pyapp.usage_import.reader import BrokenLine, UnknownUsage
from tests.usage_lines import CHAT, SESSION, as_bytes, changed, read_files

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def many(count):
    lines = (changed(CHAT, id=f"chatcmpl-{n}") for n in range(count))
    return b"".join(as_bytes(line) + b"\n" for line in lines)


def kinds(results):
    return [type(result) for result in results]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl"])
def test_gzip_is_known_by_its_contents(tmp_path, name):
    file = tmp_path / name
    # Rotated logs are often joined: two members, then padding.
    half = many(40).splitlines(keepends=True)
    members = [gzip.compress(b"".join(half[:20])), gzip.compress(b"".join(half[20:]))]
    file.write_bytes(b"".join(members) + b"\0" * 512)

    assert kinds(read_files(file)) == [NewMessage] * 40


def test_truncated_gzip_counts_up_to_its_end_and_is_named(tmp_path):
    packed = gzip.compress(many(300))
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(packed[: len(packed) // 2])

    *messages, cut, damage = read_files(file)

    assert kinds(messages) == [NewMessage] * len(messages)
    assert 0 < len(messages) < 300
    assert cut.line == len(messages) + 1
    assert (damage.line, damage.reason) == (
        cut.line + 1,
        "the gzip data ends too early",
    )


@pytest.mark.parametrize("place", ["middle", "sum"])
def test_damaged_gzip_counts_up_to_the_damage_and_is_named(tmp_path, place):
    packed = bytearray(gzip.compress(many(3_000)))
    start = len(packed) // 2 if place == "middle" else len(packed) - 8
    packed[start : start + 4] = b"\xff\x00\xff\x00"
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(packed)

    results = read_files(file)

    messages = [r for r in results if isinstance(r, NewMessage)]
    assert 0 < len(messages) <= 3_000
    assert (place == "sum") == (len(messages) == 3_000)
    assert results[-1].reason == "the gzip data is damaged from here on"


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.jsonl"])
def test_zstd_is_known_by_its_contents(tmp_path, name):
    half = many(40).splitlines(keepends=True)
    frames = [zstd.compress(b"".join(half[:20])), zstd.compress(b"".join(half[20:]))]
    (tmp_path / name).write_bytes(b"".join(frames) + b"\0" * 512)

    assert kinds(read_files(tmp_path)) == [NewMessage] * 40


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: data[: len(data) // 2], "the zstd data ends too early"),
        (
            lambda data: data[: len(data) // 2] + b"\xff" * 9_000,
            "the zstd data is damaged from here on",
        ),
    ],
)
def test_damaged_zstd_counts_up_to_the_damage_and_is_named(tmp_path, change, expected):
    file = tmp_path / "a.jsonl.zst"
    lines = many(6_000).splitlines(keepends=True)
    parts = [b"".join(lines[n : n + 500]) for n in range(0, len(lines), 500)]
    file.write_bytes(change(b"".join(map(zstd.compress, parts))))

    results = read_files(file)

    assert 1_000 < sum(isinstance(r, NewMessage) for r in results) < 6_000
    assert results[-1].reason == expected


@pytest.mark.parametrize("suffix", ["bz2", "xz"])
def test_files_that_have_to_be_unpacked_are_named_in_a_folder(tmp_path, suffix):
    packed = (bz2 if suffix == "bz2" else lzma).compress(many(3))
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(packed)

    results = read_files(tmp_path)

    assert results[0].reason.endswith("; unpack it first")


def test_memory_is_flat_for_a_small_gzip_of_a_large_file(tmp_path):
    file = tmp_path / "a.jsonl.gz"
    line = as_bytes({"type": "user", "uuid": "x" * 3_000}) + b"\n"
    file.write_bytes(gzip.compress(line * 10_000))
    tracemalloc.start()
    try:
        assert read_files(file) == []
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (b"", "utf-16-le"),
        (b"", "utf-16-be"),
    ],
)
def test_text_may_be_in_utf_16(tmp_path, mark, encoding):
    file = tmp_path / "a.jsonl"
    lines = [changed(SESSION, sessionId="é€"), CHAT]
    text = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    file.write_bytes(mark + text.encode(encoding))

    session, chat = read_files(file)

    assert session.client_id == "é€"
    assert chat.model == CHAT["model"]


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"PK\x03\x04", "a zip archive"),
        (b"BZh9", "compressed with bzip2"),
        (b"\xfd7zXZ\x00", "compressed with xz"),
        (b"SQLite format 3\0", "a SQLite database"),
        (b"PAR1", "a Parquet file"),
    ],
)
def test_other_packed_file_is_named(tmp_path, start, name):
    file = tmp_path / "a.jsonl"
    file.write_bytes(start + b"\x01\x02\n\x03" * 50)

    assert read_files(file) == [BrokenLine(str(file), 1, f"{name}; unpack it first")]


def test_pipe_may_be_compressed(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[gzip.compress(many(9))])
    writer.start()
    results = read_files(pipe)
    writer.join()

    assert kinds(results) == [NewMessage] * 9


@pytest.fixture
def projects(tmp_path):
    """Return a folder of three logs, in it and in folders of it."""
    folder = tmp_path / "projects"
    (folder / "b" / "deep").mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(as_bytes(SESSION))
    (folder / "b" / "deep" / "c.jsonl.gz").write_bytes(gzip.compress(as_bytes(CHAT)))
    other = changed(CHAT, id="chatcmpl-other")
    (folder / "b" / "d.json").write_text(json.dumps([other], indent=2))
    (folder / "b" / "notes.txt").write_text("notes")
    return folder


def test_folder_is_read_with_its_folders_in_order(projects):
    names = [log.path.name for log in find_logs([projects])]

    assert names == ["a.jsonl", "d.json", "c.jsonl.gz"]
    assert kinds(read_files(projects)) == [NewMessage] * 3


def test_file_is_read_once_however_it_is_reached(projects, tmp_path):
    (projects / "again.jsonl").symlink_to(projects / "a.jsonl")
    (projects / "b" / "loop").symlink_to(projects, target_is_directory=True)
    (projects / "gone.jsonl").symlink_to(tmp_path / "none")
    os.link(projects / "a.jsonl", projects / "hard.jsonl")

    counts = LineCounts()
    results = read_files(
        projects / "a.jsonl", projects, projects / "b", projects, counts=counts
    )

    assert kinds(results) == [NewMessage] * 3
    assert counts == LineCounts(messages=3)


def test_other_file_in_a_folder_is_counted(projects):
    (projects / "settings.json").write_text('{"theme": "dark", "maxTokens": 100}')
    (projects / "empty.jsonl").write_text("\n")
    counts = LineCounts()

    assert kinds(read_files(projects, counts=counts)) == [NewMessage] * 3
    assert counts == LineCounts(messages=3, without_usage=1, other_files=1)


def test_folder_without_a_known_file_is_reported(tmp_path):
    (tmp_path / "settings.json").write_text('{"theme": "dark"}')
    counts = LineCounts()

    (unknown,) = read_files(tmp_path, counts=counts)

    assert unknown == UnknownUsage(
        str(tmp_path), None, "no file of a known format is in it"
    )
    assert counts.unknown_files == 1


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ('{"a": 1}\n{"b": "usage"}\n', []),
        ("date,model,cost\n2026-05-04,gpt-4o,0.02\n", [1, 2]),
        ("[]", None),
        ("", None),
        (" \n\n", None),
    ],
)
def test_file_of_an_unknown_format_is_reported(tmp_path, text, lines):
    file = tmp_path / "a.jsonl"
    file.write_text(text)

    results = read_files(file)

    if lines is None:
        assert results == []
    else:
        assert [r.line for r in results] == [*lines, None]
        assert results[-1] == UnknownUsage(
            str(file), None, "no line is of a known format"
        )
