"""Runs of Claude Code: a result and its calls are the same usage, billed once.

What one file has to cost is in tests/data/usage_cases; here are several files, several
imports, and the ids.
"""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection

from pyapp.users import create_user
from tests.support import run_cli
from tests.usage_import import ADA, recorded, write_log
from tests.usage_lines import SESSION, changed, only, read, reason, tokens

MODEL = "claude-sonnet-4-5-20250929"
RUN = SESSION["sessionId"]
CALL = changed(SESSION, message__stop_reason="end_turn")


@pytest.fixture
def conn(committing: Connection) -> Connection:
    create_user(committing, email=ADA)
    return committing


def used(input: int, output: int, cost: float, **more: Any) -> dict[str, Any]:
    return {
        "inputTokens": input,
        "outputTokens": output,
        "cacheReadInputTokens": 0,
        "cacheCreationInputTokens": 0,
        "webSearchRequests": 0,
        "costUSD": cost,
        **more,
    }


def result(**line: Any) -> dict[str, Any]:
    return {
        "type": "result",
        "session_id": RUN,
        "uuid": "5f0d6f2c-0000-4000-8000-000000000001",
        "total_cost_usd": 0.5,
        "usage": {"input_tokens": 1000, "output_tokens": 100},
        "modelUsage": {MODEL: used(1000, 100, 0.5)},
        **line,
    }


def printed(id: str, input: int, output: int) -> dict[str, Any]:
    """Return a response as `claude -p --output-format stream-json` prints it."""
    usage = {"input_tokens": input, "output_tokens": output}
    message = changed(SESSION, message__id=id, message__usage=usage)["message"]
    return {"type": "assistant", "session_id": RUN, "message": message}


def import_files(*files: str) -> tuple[int, str]:
    code, _, err = run_cli("import", "usage", *files, "--user", ADA)
    return code, err


def test_result_alone_has_its_cost_and_its_session(tmp_path: Path) -> None:
    message = only(tmp_path, result())

    assert message.cost == Decimal("0.5")
    assert message.client_id == RUN
    assert message.client_request_id == f"result of {RUN}"
    assert message.id == only(tmp_path, result()).id


def test_a_cost_of_zero_is_not_known(tmp_path: Path) -> None:
    models = {MODEL: used(1000, 100, 0)}

    assert only(tmp_path, result(total_cost_usd=0, modelUsage=models)).cost is None


def test_the_only_model_without_a_cost_has_the_rest(tmp_path: Path) -> None:
    models = {MODEL: used(9, 9, 0.2), "claude-haiku-4-5": used(9, 9, 0)}
    both, _ = read(tmp_path, result(modelUsage=models))
    models["claude-opus-4-8"] = used(9, 9, 0)
    three, _ = read(tmp_path, result(modelUsage=models))

    assert [m.cost for m in both] == [Decimal("0.2"), Decimal("0.3")]
    assert [m.cost for m in three] == [Decimal("0.2"), None, None]


def test_a_cost_without_tokens_is_recorded(tmp_path: Path) -> None:
    assert only(tmp_path, result(modelUsage={MODEL: used(0, 0, 0.5)})).cost == Decimal(
        "0.5"
    )


def test_a_sum_above_the_tier_of_a_call_has_no_price(tmp_path: Path) -> None:
    models = {MODEL: used(900_000, 100, 0)}
    message = only(tmp_path, result(total_cost_usd=0, modelUsage=models))

    assert message.published is not None
    assert "of several passes" in str(message.published.reason)


def test_the_host_of_a_result_is_named(tmp_path: Path) -> None:
    models = {MODEL: used(1000, 100, 0.5, provider="bedrock")}

    assert only(tmp_path, result(modelUsage=models)).provider == "aws"
    assert only(tmp_path, result()).provider == "anthropic"


def test_a_result_adds_what_the_responses_lack(tmp_path: Path) -> None:
    lines = (printed("msg_a", 600, 3), printed("msg_b", 400, 2), result())
    messages, _ = read(tmp_path, *lines)

    assert [tokens(m) for m in messages] == [
        (600, 0, 0, 3),
        (400, 0, 0, 2),
        (0, 0, 0, 95),
    ]
    assert {m.cost for m in messages} == {None}


def test_a_run_without_its_result_has_its_responses(tmp_path: Path) -> None:
    messages, counts = read(tmp_path, printed("msg_a", 600, 3), printed("msg_b", 4, 2))

    assert [tokens(m)[3] for m in messages] == [3, 2]
    assert counts.still_open == 0


def test_a_second_turn_of_a_process_adds_the_increase(tmp_path: Path) -> None:
    second = result(
        uuid="5f0d6f2c-0000-4000-8000-000000000002",
        total_cost_usd=0.8,
        usage={"input_tokens": 50, "output_tokens": 60},
        modelUsage={MODEL: used(1050, 160, 0.7), "claude-haiku-4-5": used(9, 9, 0.1)},
    )
    first_alone, _ = read(tmp_path, result())
    messages, _ = read(tmp_path, result(), second)

    assert messages[0].id == first_alone[0].id
    assert [m.cost for m in messages] == [
        Decimal("0.5"),
        Decimal("0.2"),
        Decimal("0.1"),
    ]
    assert [tokens(m)[0] for m in messages] == [1000, 50, 9]


def test_each_turn_adds_what_its_responses_lack(tmp_path: Path) -> None:
    second = result(
        uuid="5f0d6f2c-0000-4000-8000-000000000002",
        total_cost_usd=0.8,
        usage={"input_tokens": 50, "output_tokens": 60},
        modelUsage={MODEL: used(1050, 160, 0.8)},
    )
    turns = (printed("msg_a", 900, 3), result(), printed("msg_b", 50, 2), second)
    messages, _ = read(tmp_path, *turns)

    assert [tokens(m) for m in messages] == [
        (900, 0, 0, 3),
        (100, 0, 0, 97),
        (50, 0, 0, 2),
        (0, 0, 0, 58),
    ]


def test_an_older_result_has_the_model_of_its_run(tmp_path: Path) -> None:
    begin = {"type": "system", "subtype": "init", "session_id": RUN, "model": MODEL}
    older = result()
    del older["modelUsage"]
    alone = only(tmp_path, begin, older)
    with_response, _ = read(tmp_path, begin, printed("msg_a", 900, 3), older)

    assert (alone.model, alone.cost) == (MODEL, Decimal("0.5"))
    assert tokens(alone) == (1000, 0, 0, 100)
    assert [tokens(m) for m in with_response] == [(900, 0, 0, 3), (100, 0, 0, 97)]


def test_a_result_and_its_session_in_one_import_are_one_usage(
    conn: Connection, tmp_path: Path
) -> None:
    files = [
        write_log(tmp_path / "result.json", result()),
        write_log(tmp_path / "session.jsonl", CALL),
    ]

    assert import_files(*files) == (0, "")
    (message,) = recorded(conn)
    assert tokens(message) == (4, 300, 20000, 1)


def test_what_a_run_printed_adds_nothing_to_its_session(
    conn: Connection, tmp_path: Path
) -> None:
    whole = {"input_tokens": 600, "output_tokens": 100}
    call = changed(CALL, message__id="msg_a", message__usage=whole)
    output = write_log(tmp_path / "output.jsonl", printed("msg_a", 600, 3), result())
    session = write_log(tmp_path / "session.jsonl", call)

    assert import_files(output, session) == (0, "")
    code, err = import_files(output)

    assert code == 1
    assert err.count(f"{RUN} was recorded by the calls in its file") == 1
    (message,) = recorded(conn)
    assert tokens(message) == (600, 0, 0, 100)


def test_a_session_adds_what_its_output_lacks(conn: Connection, tmp_path: Path) -> None:
    calls = [changed(CALL, message__id=f"msg_{name}") for name in "ab"]
    output = write_log(tmp_path / "output.jsonl", printed("msg_a", 600, 3), result())
    session = write_log(tmp_path / "session.jsonl", *calls)

    for files in ((output,), (output,), (session,), (session,)):
        assert import_files(*files) == (0, "")

    assert len(recorded(conn)) == 3


@pytest.mark.parametrize("is_together", [True, False])
@pytest.mark.parametrize("is_reversed", [True, False])
def test_the_result_of_a_recorded_output_is_reported(
    conn: Connection, tmp_path: Path, is_reversed: bool, is_together: bool
) -> None:
    alone = write_log(tmp_path / "result.json", result())
    output = write_log(tmp_path / "output.jsonl", printed("msg_a", 600, 3), result())
    files = [alone, output] if is_reversed else [output, alone]
    calls = [files] if is_together else [[file] for file in files]

    *codes, (code, err) = [import_files(*paths) for paths in calls]

    assert codes in ([], [(0, "")])
    assert code == 1
    other = "result" if is_reversed else "output"
    assert f"{RUN} was recorded by the {other} of its run" in err
    assert len(recorded(conn)) == (1 if is_reversed else 2)


def test_a_result_after_its_session_is_reported(
    conn: Connection, tmp_path: Path
) -> None:
    session = write_log(tmp_path / "session.jsonl", CALL)
    file = write_log(tmp_path / "result.json", result())
    assert import_files(session) == (0, "")

    code, err = import_files(file)

    assert code == 1
    assert f"{RUN} was recorded by the calls in its file" in err
    assert len(recorded(conn)) == 1


def test_a_session_after_its_result_is_reported_once(
    conn: Connection, tmp_path: Path
) -> None:
    file = write_log(tmp_path / "result.json", result())
    calls = [changed(CALL, message__id=f"msg_{n}") for n in range(3)]
    session = write_log(tmp_path / "session.jsonl", *calls)
    assert import_files(file) == (0, "")

    code, err = import_files(session)

    assert code == 1
    assert err.count(f"{RUN} was recorded by the result of its run") == 1
    assert [m.cost for m in recorded(conn)] == [Decimal("0.5")]


def test_results_of_two_runs_of_a_session_are_both_recorded(
    conn: Connection, tmp_path: Path
) -> None:
    other = result(uuid="5f0d6f2c-0000-4000-8000-000000000009")
    files = [
        write_log(tmp_path / "first.json", result()),
        write_log(tmp_path / "second.json", other),
    ]

    assert [import_files(file)[0] for file in (*files, *files)] == [0, 0, 0, 0]
    assert [m.cost for m in recorded(conn)] == [Decimal("0.5")] * 2


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (result(modelUsage={}), "no modelUsage, so no model is named"),
        (result(modelUsage={MODEL: 5}), f"modelUsage of '{MODEL}' is not an object"),
        (
            result(total_cost_usd=0.75),
            "the costs of modelUsage (0.5) differ from total_cost_usd (0.75)",
        ),
        (result(modelUsage={MODEL: used(-1, 0, 0.5)}), "inputTokens"),
    ],
)
def test_a_result_that_contradicts_itself_is_reported(
    tmp_path: Path, line: object, expected: str
) -> None:
    assert expected in reason(tmp_path, line)


@pytest.mark.parametrize(
    ("named", "provider"), [("vertex", "vertex_ai"), ("bedrock", "aws")]
)
def test_host_of_a_result_has_the_id_that_bodies_have(
    tmp_path: Path, named: str, provider: str
) -> None:
    usage = {MODEL: used(1000, 100, 0.5, provider=named)}
    assert only(tmp_path, result(modelUsage=usage)).provider == provider
