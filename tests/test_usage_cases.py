"""`pyapp import usage` bills each case exactly, or reports it with its reason.

The cases are in tests/data/usage_cases, made by hand: an input, and a row of
expected.tsv with the cost in USD, or `reported`, and the arithmetic. Where the row says
`or reported`, both are right: the published prices may not know the price yet.
"""

import csv
from decimal import Decimal
from pathlib import Path

import pytest
from psycopg import Connection

from pyapp.users import create_user
from tests.support import run_cli
from tests.usage_import import ADA, recorded

FOLDER = Path(__file__).parent / "data" / "usage_cases"
with (FOLDER / "expected.tsv").open(encoding="utf-8", newline="") as table:
    CASES = list(csv.DictReader(table, delimiter="\t"))


@pytest.fixture
def conn(committing: Connection) -> Connection:
    create_user(committing, email=ADA)
    return committing


def find_file(case: str) -> Path:
    (file,) = [p for p in FOLDER.iterdir() if p.name.partition(".")[0] == case]
    return file


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_case_is_billed_exactly_or_reported(
    conn: Connection, case: dict[str, str]
) -> None:
    amount, _, other = case["expected"].partition(" or ")
    provider = ["--provider", case["provider"]] if case["provider"] else []
    arguments = (str(find_file(case["case"])), "--at", "2026-11-20", *provider)

    code, _, err = run_cli("import", "usage", *arguments, "--user", ADA)
    messages = recorded(conn)
    again, *_ = run_cli("import", "usage", *arguments, "--user", ADA)

    cost = sum((message.cost for message in messages), start=Decimal(0))
    if "reported" in (amount, other) and code:
        assert (messages, code) == ([], 1)
        assert err
    else:
        assert messages
        assert (cost, code) == (Decimal(amount), 0)
    assert again == code
    assert recorded(conn) == messages


def test_each_case_has_an_input_and_each_input_a_case() -> None:
    inputs = {p.name.partition(".")[0] for p in FOLDER.iterdir()} - {"expected"}

    assert sorted(inputs) == sorted(case["case"] for case in CASES)
