"""No reader fails because of a value, of any type, in a form that it knows."""

import copy
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pyapp.errors import InvalidValueError
from pyapp.usage_import import formats
from pyapp.usage_import.collection import LineCounts
from pyapp.usage_import.files import find_logs
from pyapp.usage_import.formats import Reader
from pyapp.usage_import.lines import read_entries
from pyapp.usage_import.reader import BrokenLine
from tests.usage_lines import CHAT, SESSION, read

FOLDER = Path(__file__).parent / "data" / "usage_cases"
CASES = sorted(path for path in FOLDER.iterdir() if path.suffix != ".tsv")
VALUES: list[Any] = [
    None,
    0,
    7,
    -1,
    -3,
    1.5,
    10**30,
    True,
    "x",
    "",
    [],
    [1],
    ["a"],
    [{}],
    [{"a": []}],
    [7, None],
    {},
    {"a": 1},
]
CHANGES = 70


def objects(path: Path) -> list[Any]:
    """Return the objects of a case."""
    (log,) = find_logs([path])
    with log.open(lambda _: None) as stream:
        return [e.value for e in read_entries(stream) if e.value is not None]


def places(value: object) -> Iterator[tuple[Any, Any]]:
    """Yield each container in *value* with each of its keys."""
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield value, key
            yield from places(value[key])


@pytest.mark.parametrize("path", CASES, ids=[path.name for path in CASES])
def test_reader_answers_or_reports_for_any_value(path: Path) -> None:
    numbers = random.Random(path.name)
    lines = objects(path)
    for _ in range(CHANGES):
        changed = copy.deepcopy(lines)
        found = [place for line in changed for place in places(line)]
        if not found:
            return
        container, key = numbers.choice(found)
        if numbers.random() < 0.2:
            del container[key]
        else:
            container[key] = copy.deepcopy(numbers.choice(VALUES))
        reader = Reader()
        for number, line in enumerate(changed, start=1):
            with suppress(InvalidValueError):
                responses = reader.read(line, number)
                assert responses is None or isinstance(responses, tuple | list)
                assert all(response.model for response in responses or ())
        assert all(rest is not None for rest in reader.finish())


def test_error_in_a_reader_is_a_broken_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise TypeError("unhashable type: 'list'")

    body = formats.openai.BODY._replace(read=fail)
    monkeypatch.setattr(formats, "BODIES", (formats.anthropic.BODY, body))

    results, counts = read(tmp_path, CHAT, SESSION)

    assert results[0] == BrokenLine(
        str(tmp_path / "usage.jsonl"), 1, "not readable: TypeError"
    )
    assert counts == LineCounts(messages=1, broken=1)
