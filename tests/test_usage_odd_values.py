"""Any value anywhere in a log is read, or reported: it never ends the import."""

import copy
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pyapp.errors import InvalidValueError
from pyapp.usage_import.formats import Reader
from pyapp.usage_import.lines import read_entries

FOLDER = Path(__file__).parent / "data" / "usage_cases"
FILES = sorted(p for p in FOLDER.iterdir() if p.suffix in (".json", ".jsonl", ".sse"))
ODD: list[Any] = [
    None,
    [],
    {},
    "",
    0,
    -1,
    1.5,
    True,
    "x",
    [1],
    {"a": 1},
    10**30,
    [{"a": []}],
]
ROUNDS = 30


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths to all values inside *value*."""
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    for key, part in inner:
        yield (*path, key)
        yield from places(part, (*path, key))


def distort(line: dict[str, Any], random: Random) -> None:
    """Replace or remove one value."""
    *parents, last = random.choice(list(places(line)))
    part: Any = line
    for key in parents:
        part = part[key]
    if random.random() < 0.2:
        del part[last]
    else:
        part[last] = copy.deepcopy(random.choice(ODD))


@pytest.mark.parametrize("file", FILES, ids=[file.name for file in FILES])
def test_odd_values_are_reported_or_read(file: Path) -> None:
    with file.open("rb") as stream:
        lines = [line for _, line, _ in read_entries(stream) if line is not None]
    random = Random(file.name)
    for _ in range(ROUNDS):
        odd = copy.deepcopy(lines)
        distort(random.choice([line for line in odd if line]), random)
        reader = Reader()
        for number, line in enumerate(odd, start=1):
            with suppress(InvalidValueError):
                found = reader.read(line, number)
                assert found is None or all(part.model for part in found)
        assert all(rest is not None for rest in reader.finish())
