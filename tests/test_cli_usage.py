"""`pyapp import usage` records each model call of a log exactly once."""

import io
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection
from rich.console import Console

from pyapp.cli import console
from pyapp.cli import usage as command
from pyapp.messages import RecordedMessages, record_message, record_messages
from pyapp.users import create_user
from tests.support import run_cli
from tests.usage_import import ADA, ada_id, calls, import_usage, recorded, write_log
from tests.usage_lines import ANTHROPIC, CHAT, RESPONSE, SESSION, changed

FINGERPRINT = "d0d0d0d0-0000-4000-8000-000000000001"
NOT_ONE_PAYER = "name the payer: --user EMAIL or --fingerprint UUID"
PYAPP = [sys.executable, "-c", "from pyapp.cli import main; main()"]
NOTHING_NEW = "nothing new: 0 USD, 0 credits"
EXAMPLES = sorted(map(str, Path(__file__).parents[1].glob("examples/ada/*.jsonl")))


@pytest.fixture
def conn(committing: Connection) -> Connection:
    create_user(committing, email=ADA)
    return committing


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return where the log of a test is written."""
    return tmp_path / "usage.jsonl"


def test_a_log_becomes_messages_and_a_repeat_adds_nothing(conn: Connection) -> None:
    first = import_usage(*EXAMPLES, "--at", "2026-11-22")
    messages = recorded(conn)
    again = import_usage(*EXAMPLES, "--at", "now")

    assert first == [
        "179 new messages from 2026-09-28 to 2026-11-22: 4.2255 USD, 507.06 credits",
        "0 already recorded; lines: 72 repeated, 73 without usage, 0 broken",
    ]
    assert again == [
        NOTHING_NEW,
        "179 already recorded; lines: 72 repeated, 73 without usage, 0 broken",
    ]
    assert recorded(conn) == messages
    assert f"{sum(m.cost for m in messages):.4f}" == "4.2255"
    assert f"{sum(m.credits for m in messages):.2f}" == "507.06"


def test_response_that_an_earlier_version_recorded_is_not_billed_again(
    conn: Connection, log: Path
) -> None:
    """Its id contained the time of the response."""
    for id in (
        "bc51b040-96c1-5454-b42c-ffe053b60486",
        "a6689a26-128a-52e5-ae06-8ff914d35470",
    ):
        record_message(
            conn, id=UUID(id), user_id=ada_id(conn), model="gpt-5-mini", cost=Decimal(1)
        )
    conn.commit()
    before = recorded(conn)
    first = changed(CHAT, id="chatcmpl-Abcdefgh01234567")
    second = changed(RESPONSE, id="resp_0123456789abcdef")

    assert import_usage(write_log(log, first, second)) == [
        NOTHING_NEW,
        "2 already recorded; lines: 0 repeated, 0 without usage, 0 broken",
    ]
    assert recorded(conn) == before
    third = changed(CHAT, id="chatcmpl-Abcdefgh01234568")
    assert import_usage(write_log(log, first, second, third))[1].startswith("2 already")
    assert len(recorded(conn)) == 3


def test_a_longer_log_adds_only_what_is_new(conn: Connection, log: Path) -> None:
    import_usage(write_log(log, *calls(3)))

    summary = import_usage(write_log(log, *calls(5)))

    assert [line.split()[0] for line in summary] == ["2", "3"]
    assert len(recorded(conn)) == 5


def test_a_response_is_recorded_once_it_has_ended(conn: Connection, log: Path) -> None:
    begun = changed(SESSION, timestamp=datetime.now(UTC).isoformat())
    ended = changed(begun, message__stop_reason="stop", message__usage__output_tokens=9)

    new, _, left = import_usage(write_log(log, begun))
    import_usage(write_log(log, begun, ended))

    reason = "1 response may still be streaming: not recorded; import again later"
    assert (new, left) == (NOTHING_NEW, reason)
    assert [message.output_tokens for message in recorded(conn)] == [9]


def test_all_formats_keep_their_time_client_and_request(
    conn: Connection, log: Path
) -> None:
    file = write_log(log, SESSION, CHAT, RESPONSE, changed(ANTHROPIC, id="msg_2"))
    import_usage(file, "--at", "2026-06-01")

    by_time = {m.finished_at.isoformat(): m for m in recorded(conn)}

    assert sorted(by_time) == [
        "2026-05-04T09:46:43+00:00",
        "2026-05-04T10:03:19+00:00",
        "2026-05-04T10:11:12.345000+00:00",
        "2026-06-01T00:00:00+00:00",
    ]
    session = by_time["2026-05-04T10:11:12.345000+00:00"]
    assert session.client_id == SESSION["sessionId"]
    assert session.client_request_id == SESSION["requestId"]


def test_at_now_dates_a_response_without_a_time(conn: Connection, log: Path) -> None:
    import_usage(write_log(log, ANTHROPIC), "--at", "now")

    (message,) = recorded(conn)

    assert abs(message.finished_at - datetime.now(UTC)) < timedelta(minutes=1)


def test_credits_carry_the_configured_margin(
    conn: Connection, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYAPP_MARGIN", "0.5")
    import_usage(write_log(log, CHAT))

    (message,) = recorded(conn)

    assert message.credits == round(message.cost * 150, 6) > 0


def test_a_fingerprint_pays_and_is_created_by_its_first_call(
    conn: Connection, log: Path
) -> None:
    file = write_log(log, CHAT)
    payer = ("--fingerprint", FINGERPRINT)

    summary, _ = import_usage(file, payer=payer)
    assert summary.startswith("1 new message on 2026-05-04: ")
    assert import_usage(file, payer=payer)[0] == NOTHING_NEW
    assert [str(m.fingerprint_id) for m in recorded(conn, UUID(FINGERPRINT))] == [
        FINGERPRINT
    ]
    assert recorded(conn) == []


def test_a_terminal_gets_a_progress_bar(
    conn: Connection, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=80, soft_wrap=True)
    monkeypatch.setattr(console, "stderr", terminal)

    file = write_log(log, *calls(3), "{")
    code, out, _ = run_cli("import", "usage", file, "--user", ADA)
    text = re.sub(r"\x1b\[[\d;?]*\w", "", screen.getvalue())

    assert code == 1
    assert "100%" in text
    assert "usage.jsonl:4:notJSON" in "".join(text.split())
    assert out.splitlines()[0].startswith("3 new messages")


def test_a_broken_line_is_reported_with_its_number(conn: Connection, log: Path) -> None:
    unknown = changed(CHAT, model="nope-1", id="x")
    file = write_log(log, SESSION, '{"usage":', CHAT, unknown)

    command = [*PYAPP, "import", "usage", file, "--user", ADA]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"{file}:2: not JSON: Expecting value (column 10)",
        f"{file}:4: no published price for model 'nope-1'",
    ]
    assert done.stdout.splitlines()[1:] == [
        "0 already recorded; lines: 0 repeated, 0 without usage, 2 broken",
        "1 broken line has no price; see: pyapp prices set",
    ]
    assert len(recorded(conn)) == 2


def test_each_of_many_broken_lines_is_named(conn: Connection, log: Path) -> None:
    file = write_log(log, *["{"] * 100, CHAT)

    code, out, err = run_cli("import", "usage", file, "--user", ADA)

    assert code == 1
    numbers = [line.split(":")[-3] for line in err.splitlines()]
    assert numbers == [str(number) for number in range(1, 101)]
    assert "100 broken" in out


def test_a_killed_import_keeps_whole_batches_and_can_continue(
    conn: Connection, log: Path
) -> None:
    """It is killed after the third batch is recorded and before it is committed."""
    file = write_log(log, *calls(25))
    kill = f"""if True:
        import os, signal
        from pyapp.cli import main, usage

        record, results = usage.record_messages, []

        def record_and_die(*args, **kwargs):
            results.append(record(*args, **kwargs))
            if len(results) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return results[-1]

        usage.BATCH, usage.record_messages = 10, record_and_die
        main(["import", "usage", {file!r}, "--user", {ADA!r}])
    """
    killed = subprocess.run([sys.executable, "-c", kill], check=False)

    assert killed.returncode == -signal.SIGKILL
    assert len(recorded(conn)) == 20

    summary = import_usage(file)

    assert [line.split()[0] for line in summary] == ["5", "20"]
    assert len(recorded(conn)) == 25


def test_an_interrupted_import_says_how_to_continue(
    conn: Connection, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[RecordedMessages] = []

    def record_twice(*args: Any, **kwargs: Any) -> RecordedMessages:
        if len(results) == 2:
            raise KeyboardInterrupt
        results.append(record_messages(*args, **kwargs))
        return results[-1]

    monkeypatch.setattr(command, "BATCH", 10)
    monkeypatch.setattr(command, "record_messages", record_twice)

    file = write_log(log, *calls(25))
    code, out, err = run_cli("import", "usage", file, "--user", ADA)

    assert (code, out) == (130, "")
    assert err == (
        "stopped: 20 new messages were recorded; repeat the command to continue\n"
    )
    assert len(recorded(conn)) == 20


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["none.jsonl"], "error: cannot read none.jsonl: No such file or directory"),
    ],
)
def test_a_missing_file_is_named_before_anything_is_recorded(
    conn: Connection,
    log: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    error: str,
) -> None:
    monkeypatch.chdir(log.parent)

    result = run_cli("import", "usage", write_log(log, CHAT), *arguments, "--user", ADA)

    assert result == (1, "", error + "\n")
    assert recorded(conn) == []


def test_an_unknown_user_is_named_with_the_command_to_create_it(
    conn: Connection, log: Path
) -> None:
    file = write_log(log, CHAT)
    code, _, err = run_cli("import", "usage", file, "--user", "b@c.de")
    create = "error: no user b@c.de; create one with: pyapp users add b@c.de\n"

    assert (code, err) == (1, create)

    *_, add, email = create.split()
    assert run_cli("users", add, email)[0] == 0
    assert import_usage(file, payer=("--user", "B@C.DE"))[0].startswith("1 new")


def test_the_id_of_a_user_is_refused_as_a_fingerprint(
    conn: Connection, log: Path
) -> None:
    payer = ("--fingerprint", str(ada_id(conn)))

    code, _, err = run_cli("import", "usage", write_log(log, CHAT), *payer)

    assert code == 1
    assert err.startswith("error: the fingerprint's id is a user's")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], NOT_ONE_PAYER),
        (["--user", ADA, "--fingerprint", FINGERPRINT], NOT_ONE_PAYER),
        (["--fingerprint", "d0"], "--fingerprint: 'd0' is not a UUID"),
        (["--user", ADA, "--at", "yesterday"], "invalid time 'yesterday'"),
        (["--user", "ada"], "'ada' is neither an e-mail address nor a UUID"),
    ],
)
def test_invalid_payer_or_time_is_refused(
    conn: Connection, log: Path, arguments: list[str], reason: str
) -> None:
    code, out, err = run_cli("import", "usage", write_log(log, CHAT), *arguments)

    assert (code, out) == (2, "")
    assert err.startswith(f"error: {reason}")
