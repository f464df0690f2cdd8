"""`pyapp import usage` ends with status 0 only if nothing that costs was left out."""

import json
import random
from decimal import Decimal
from pathlib import Path

import pytest
from psycopg import Connection

from pyapp.users import create_user
from tests.support import run_cli
from tests.usage_import import ADA, calls, import_usage, recorded, write_log
from tests.usage_lines import ANTHROPIC, CHAT, RESPONSE, SESSION, changed

NOTHING_NEW = "nothing new: 0 USD, 0 credits"


@pytest.fixture
def conn(committing: Connection) -> Connection:
    create_user(committing, email=ADA)
    return committing


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return where the log of a test is written."""
    return tmp_path / "usage.jsonl"


def run(*arguments: str) -> tuple[int, list[str], list[str]]:
    code, out, err = run_cli("import", "usage", *arguments, "--user", ADA)
    return code, out.splitlines(), err.splitlines()


@pytest.mark.parametrize(
    ("allowed", "status"), [("0", 1), ("1", 1), ("2", 0), ("9", 0)]
)
def test_allowed_number_of_broken_lines_ends_with_status_0(
    conn: Connection, log: Path, allowed: str, status: int
) -> None:
    file = write_log(log, CHAT, "{", "nonsense", SESSION)

    code, out, err = run(file, "--allow-broken", allowed)

    assert code == status
    assert [line.split(": ")[0] for line in err] == [f"{file}:2", f"{file}:3"]
    assert out[1].endswith(" 2 broken")
    assert len(recorded(conn)) == 2


def test_call_without_a_price_counts_as_a_broken_line(
    conn: Connection, log: Path
) -> None:
    file = write_log(log, CHAT, changed(CHAT, id="x", model="house-1"))

    assert run(file)[0] == 1
    code, out, err = run(file, "--allow-broken", "1")

    assert code == 0
    assert err == [f"{file}:2: no published price for model 'house-1'"]
    assert out == [
        NOTHING_NEW,
        "1 already recorded; lines: 0 repeated, 0 without usage, 1 broken",
        "1 broken line has no price; see: pyapp prices set",
    ]


@pytest.mark.parametrize(
    "lines",
    [
        [{"llm": {"tokens": 5}}],
        [CHAT, {"llm": {"tokens": 5}}],
        ["date,model,cost", "2026-05-04,gpt-4o,0.02"],
        [{"event": "signed in"}],
    ],
)
def test_unknown_format_never_ends_with_status_0(
    conn: Connection, log: Path, lines: list[object]
) -> None:
    file = write_log(log, *lines)

    for _ in range(2):
        code, out, err = run(file, "--allow-broken", "1000")

        assert code == 1
        assert any("unknown" in line for line in out[2:])
        assert err


def test_folder_of_unknown_files_ends_with_status_1(
    conn: Connection, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text('{"theme": "dark"}')

    code, out, err = run(str(tmp_path))

    assert (code, err) == (1, [f"{tmp_path}: no file of a known format is in it"])
    assert out[-2:] == [
        "1 file or folder of an unknown format",
        "1 other file in the folders, without usage",
    ]


def test_folder_without_a_log_is_named(conn: Connection, tmp_path: Path) -> None:
    code, out, err = run(str(tmp_path))

    assert (code, out) == (1, [])
    assert err == [
        "error: no file to read: in a folder they are *.jsonl, *.ndjson, *.json, or .gz"
    ]


def test_folder_is_imported(conn: Connection, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_log(tmp_path / "a" / "one.jsonl", *calls(3))
    write_log(tmp_path / "two.jsonl", SESSION)

    assert import_usage(str(tmp_path))[0].startswith("4 new messages")
    assert import_usage(str(tmp_path), str(tmp_path / "a"))[0] == NOTHING_NEW


def test_stated_costs_are_summed_up_apart(conn: Connection, log: Path) -> None:
    stated = [
        {**changed(SESSION, message__id=f"msg_{n}"), "costUSD": 0.1} for n in "ab"
    ]
    file = write_log(log, CHAT, *stated, changed(CHAT, id="y", usage__cost=0.2))

    assert import_usage(file)[2:] == [
        "3 new messages at the cost that the log states: 0.4000 USD"
    ]
    assert len(import_usage(file)) == 2
    costs = sorted(message.cost for message in recorded(conn))
    assert costs[1:] == [Decimal("0.1"), Decimal("0.1"), Decimal("0.2")]


def test_given_provider_is_recorded_and_determines_the_price(
    conn: Connection, log: Path
) -> None:
    file = write_log(log, changed(CHAT, model="glm-4.7"))

    import_usage(file, "--provider", "zai")

    (message,) = recorded(conn)
    assert message.provider == "zai"
    assert message.cost > 0


def test_provider_follows_from_the_format_or_the_id(
    conn: Connection, log: Path
) -> None:
    regional = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
    usage = {"input_tokens": 5, "output_tokens": 5}
    on_bedrock = changed(ANTHROPIC, id="msg_bdrk_2", model=regional, usage=usage)
    hosted = changed(
        CHAT,
        id="y",
        model="groq/llama-3.3-70b-versatile",
        usage={"prompt_tokens": 5, "completion_tokens": 5},
    )
    lines = [ANTHROPIC, CHAT, on_bedrock, hosted]
    import_usage(write_log(log, *lines), "--at", "now")

    assert {m.model: m.provider for m in recorded(conn)} == {
        regional: "aws",
        "groq/llama-3.3-70b-versatile": "groq",
        "claude-sonnet-4-5-20250929": "anthropic",
        "gpt-4o-mini-2024-07-18": None,
    }


@pytest.mark.parametrize("provider", ["", "  ", "x" * 256])
def test_invalid_provider_is_refused(log: Path, provider: str) -> None:
    code, out, err = run(write_log(log, CHAT), "--provider", provider)

    assert (code, out) == (2, [])
    assert "--provider is a name of 1 to 255" in " ".join(err)


def test_every_line_of_the_summary_fits_80_columns(conn: Connection, log: Path) -> None:
    lines = [
        *calls(3),
        "{",
        changed(CHAT, id="x", model="house-1"),
        {**SESSION, "costUSD": 123456.789},
        {"tokens": 5},
    ]
    _, out, _ = run(write_log(log, *lines))

    assert len(out) == 5
    assert max(map(len, out)) <= 80


def damaged(text: str, way: int) -> str:
    """Return a line as one of ten accidents leave it."""
    middle = len(text) // 2
    return [
        text[:middle],
        text[middle:],
        text[:middle] + "\0" * 9 + text[middle + 9 :].replace('"', "'", 1),
        text.replace(":", "", 1),
        text + "}",
        text.replace('"prompt_tokens"', '"prompt_tokens', 1),
        text.replace("50", "fifty", 1),
        text.replace('"usage": {', '"usage": [{', 1),
        text.replace("gpt-4o", "gqt-4o", 1),
        text.replace("1000", "-1000", 1),
    ][way]


def test_damaged_lines_are_named_and_all_others_are_recorded(
    conn: Connection, log: Path
) -> None:
    random.seed(1)
    texts = [json.dumps(changed(c, choices=["x" * 99])) for c in calls(4_000)]
    broken = sorted(random.sample(range(len(texts)), len(texts) // 20))
    for place, number in enumerate(broken):
        texts[number] = damaged(texts[number], place % 10)
    file = write_log(log, *texts)

    code, out, err = run(file)

    assert code == 1
    named = [int(line.removeprefix(f"{file}:").split(":")[0]) for line in err]
    assert sorted(named) == [number + 1 for number in broken]
    assert out[0].startswith(f"{len(texts) - len(broken):,} new messages")
    assert run(file)[1][0] == NOTHING_NEW
    kept = {m.id for m in recorded(conn)}
    assert len(kept) == 1_000
    assert run(write_log(log, RESPONSE))[0] == 0
