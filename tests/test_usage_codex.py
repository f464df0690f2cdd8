"""Rollouts of Codex CLI: each call is counted once, however often it is written.

What one file has to cost is in tests/data/usage_cases; here are the identities of calls
in several files and several imports, and what is reported of odd counters.
"""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pyapp._core.new_messages import NewMessage
from pyapp.usage_import.collection import LineCounts
from pyapp.usage_import.fields import moment
from pyapp.usage_import.reader import BrokenLine
from tests.usage_lines import changed, read, read_files, tokens

START = moment("start", "2026-05-04T10:00:00Z")
MODEL = "gpt-5-codex"
PARENT = "019df26a-1000-7000-8000-000000000001"


def at(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat()


def meta(thread: str, seconds: float = 0, **payload: Any) -> dict[str, Any]:
    payload = {"id": thread, "timestamp": at(seconds), **payload}
    return {"timestamp": at(seconds), "type": "session_meta", "payload": payload}


def turn(seconds: float = 1, **payload: Any) -> dict[str, Any]:
    payload = {"model": MODEL, **payload}
    return {"timestamp": at(seconds), "type": "turn_context", "payload": payload}


def used(input: int, output: int, cached: int = 0) -> dict[str, int]:
    return {
        "input_tokens": input,
        "cached_input_tokens": cached,
        "output_tokens": output,
        "total_tokens": input + output,
    }


def event(seconds: float, total: Any, last: Any) -> dict[str, Any]:
    info = {"total_token_usage": total, "last_token_usage": last}
    payload = {"type": "token_count", "info": info}
    return {"timestamp": at(seconds), "type": "event_msg", "payload": payload}


def record(seconds: float, response: str, usage: Any, thread: str) -> dict[str, Any]:
    payload = {"response_id": response, "thread_id": thread, "usage": usage}
    return {"timestamp": at(seconds), "type": "token_usage_record", "payload": payload}


FIRST = event(10, used(1000, 100), used(1000, 100))
SECOND = event(20, used(3000, 300), used(2000, 200))
THREAD = [meta(PARENT), turn(), FIRST, SECOND]


def reasons(results: list[Any]) -> list[str]:
    return [result.reason for result in results if isinstance(result, BrokenLine)]


def test_a_longer_rollout_has_the_ids_that_it_had(tmp_path: Path) -> None:
    before, _ = read(tmp_path, *THREAD[:3])
    after, _ = read(tmp_path, *THREAD)

    assert [m.id for m in before] == [m.id for m in after[:1]]
    assert [tokens(m) for m in after] == [(1000, 0, 0, 100), (2000, 0, 0, 200)]
    assert {m.client_id for m in after} == {PARENT}


def test_a_copy_of_a_rollout_has_the_same_ids(tmp_path: Path) -> None:
    messages, _ = read(tmp_path, *THREAD)
    copy, counts = read(tmp_path, *THREAD, *THREAD)

    assert copy == messages
    assert counts.repeats == 0  # the second copy repeats counters of the thread


def test_a_fork_bills_its_own_calls_in_either_order(tmp_path: Path) -> None:
    copied = [changed(line, timestamp=at(3600.01)) for line in THREAD]
    own = event(3700, used(6000, 600, 2000), used(3000, 300, 2000))
    fork = [meta("fork", 3600, forked_from_id=PARENT), *copied, turn(3605), own]
    files = []
    for name, lines in (("fork", fork), ("parent", THREAD)):
        (tmp_path / name).mkdir()
        read(tmp_path / name, *lines)
        files.append(tmp_path / name / "usage.jsonl")

    together = read_files(*files)
    reversed_order = read_files(*reversed(files))
    alone = read_files(files[0])

    assert sorted(map(tokens, together)) == [
        (1000, 0, 0, 100),
        (1000, 0, 2000, 300),
        (2000, 0, 0, 200),
    ]
    assert {m.id for m in reversed_order} == {m.id for m in together}
    assert [tokens(m) for m in alone] == [(1000, 0, 2000, 300)]


def test_a_copy_with_its_old_timestamps_is_not_billed(tmp_path: Path) -> None:
    own = event(7300, used(4000, 400), used(1000, 100))
    messages, _ = read(tmp_path, meta("resumed", 7200), *THREAD[1:], turn(7201), own)

    assert [tokens(m) for m in messages] == [(1000, 0, 0, 100)]


def test_siblings_with_the_same_counts_are_two_calls(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        read(tmp_path / name, meta(name, parent_thread_id=PARENT), turn(), FIRST)

    messages = read_files(*(tmp_path / name / "usage.jsonl" for name in ("a", "b")))

    assert [tokens(m) for m in messages] == [(1000, 0, 0, 100)] * 2
    assert len({m.id for m in messages}) == 2


def test_a_record_has_the_id_of_its_response(tmp_path: Path) -> None:
    usage = used(1000, 100)
    with_event, _ = read(
        tmp_path, meta("t"), turn(), record(9, "resp_1", usage, "t"), FIRST
    )
    alone, _ = read(tmp_path, meta("t"), turn(), record(9, "resp_1", usage, "t"))
    late, _ = read(tmp_path, meta("t"), turn(), FIRST, record(11, "resp_1", usage, "t"))

    assert with_event == alone
    assert alone[0].client_request_id == "resp_1"
    assert len(late) == 1


def test_a_record_of_another_thread_is_not_billed(tmp_path: Path) -> None:
    other = record(9, "resp_1", used(1000, 100), "another")
    messages, counts = read(tmp_path, meta("t"), turn(), other)

    assert messages == []
    assert counts == LineCounts(without_usage=3)


def test_events_of_another_thread_between_two_are_counted(tmp_path: Path) -> None:
    inner = event(15, used(50, 5), used(50, 5))
    messages, _ = read(tmp_path, meta("t"), turn(), FIRST, inner, SECOND)

    assert [tokens(m)[0] for m in messages] == [1000, 50, 2000]


def test_calls_that_no_line_shows_are_reported(tmp_path: Path) -> None:
    lines = [meta("t"), turn(), event(20, used(3000, 300), used(2000, 200))]
    results, counts = read(tmp_path, *lines)

    assert reasons(results) == [
        "the counters of the thread have 1100 tokens more than its calls in this file"
    ]
    assert [tokens(m)[0] for m in results if isinstance(m, NewMessage)] == [2000]
    assert counts.broken == 1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            event(20, used(1500, 150), used(2000, 200)),
            "last_token_usage (2200) exceeds total_token_usage (1650)",
        ),
        (
            event(20, used(2500, 250), used(2000, 200)),
            "last_token_usage (2200) exceeds the step of total_token_usage (1650)",
        ),
        (
            event(20, used(3000, 300, 2500), used(2000, 200, 2500)),
            "cached tokens (2500) exceed input_tokens (2000)",
        ),
        (
            event(20, used(3000, 300), {**used(2000, 200), "total_tokens": 9}),
            "input_tokens and output_tokens (2200) differ from total_tokens (9)",
        ),
        (
            event(
                20, used(3000, 300), used(2000, 200) | {"reasoning_output_tokens": 201}
            ),
            "reasoning_output_tokens (201) exceed output_tokens (200)",
        ),
        (event(20, [], used(2000, 200)), "the token usage is not an object"),
        (
            changed(FIRST, payload={"type": "token_count", "inf": {"a": used(10, 1)}}),
            "a token_count without the counters of its thread",
        ),
        (
            record(20, "resp_1", None, "t"),
            "a token_usage_record without its usage",
        ),
        (
            changed(FIRST, payload={"type": "token_count", **used(10, 1)}),
            "a token_count without the counters of its thread",
        ),
    ],
)
def test_counters_that_contradict_are_reported_with_both_figures(
    tmp_path: Path, line: object, expected: str
) -> None:
    results, _ = read(tmp_path, meta("t"), turn(), FIRST, line)

    assert reasons(results) == [expected]


@pytest.mark.parametrize("id", ["ffffffff-ffff-7fff-bfff-ffffffffffff", "x", 5, None])
def test_any_id_of_a_thread_is_read(tmp_path: Path, id: Any) -> None:
    line = meta("t", forked_from_id=PARENT, subagent_history_start_ordinal="x")
    line["payload"]["id"] = id
    messages, _ = read(tmp_path, line, turn(turn_id=id), FIRST)

    assert [tokens(m) for m in messages] == [(1000, 0, 0, 100)]


def test_fast_mode_is_the_priority_tier(tmp_path: Path) -> None:
    settings = {"model": MODEL, "service_tier": "fast"}
    payload = {"type": "thread_settings_applied", "thread_settings": settings}
    applied = {"timestamp": at(2), "type": "event_msg", "payload": payload}
    results, _ = read(tmp_path, meta("t"), turn(), applied, FIRST)

    (result,) = results
    assert result.published is not None
    assert not result.published.is_standard
