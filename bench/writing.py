"""Recording messages singly and in bulk, with and without the rollup."""

import random
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID, uuid4

import psycopg

from bench.contest import Contestant, measure_rate, pgbench_command
from bench.load import query
from bench.measures import Measure, at_least, at_most, in_turn
from tests.temp_server import open_folder

COPIED = 100_000


def measure_inserts(url: str, accounts: list[UUID], seconds: int) -> Iterator[Measure]:
    """Yield single messages: the same INSERT with the rollup trigger on and off."""
    spread = rf"\set n random(1, {len(accounts)})"
    for name, choice, clients, target in (
        ("one message, 8 writers", spread, 8, 0.7),
        ("one message, 32 writers", spread, 32, None),
        ("one message, 32 writers, one user", r"\set n 1", 32, None),
    ):
        text = f"{choice}\n{query('insert_message').source}"
        rates = measure_rate(
            url,
            {
                "rollup": Contestant(text, prepare=partial(_switch, url, "enable")),
                "plain": Contestant(text, prepare=partial(_switch, url, "disable")),
            },
            {"rollup": {"model": "rollup"}, "plain": {"model": "plain"}},
            clients=clients,
            seconds=seconds,
        )
        _switch(url, "enable")
        found = at_least(
            name,
            f"{rates['rollup']:,.0f} /s",
            f"plain {rates['plain']:,.0f} /s",
            rates["rollup"] / rates["plain"],
            target or 0,
            dict(rates),
        )
        yield found if target else _reported(found)


def measure_copy(url: str, accounts: list[UUID], rows: int) -> Iterator[Measure]:
    """Yield bulk messages: the same COPY with the rollup trigger on and off."""
    block = _block(accounts, rows)

    def copy(switch: str) -> float:
        with psycopg.connect(url) as conn:
            conn.execute(query(f"{switch}_rollup").sql)
            began = time.perf_counter()
            with conn.cursor().copy(query("copy_messages").sql) as copying:
                copying.write(block)
            took = time.perf_counter() - began
            conn.rollback()
        return took

    seconds = in_turn(copy, "enable", "disable", rounds=5)
    yield at_most(
        f"{rows:,} messages by COPY",
        f"{seconds['enable']:.2f} s",
        f"plain {seconds['disable']:.2f} s",
        seconds["enable"] / seconds["disable"],
        1.2,
        {"rollup": seconds["enable"], "plain": seconds["disable"]},
    )


def measure_mixture(
    url: str, accounts: list[UUID], rows: int, seconds: int
) -> Iterator[Measure]:
    """COPY while 8 clients write; then check that all sums equal their messages."""
    folder = open_folder()
    script = folder / "insert.sql"
    spread = rf"\set n random(1, {len(accounts)})"
    script.write_text(f"{spread}\n{query('insert_message').source}", encoding="utf-8")
    command = pgbench_command(
        url, {"model": "rollup"}, f"--file={script}", "--client=8", f"--time={seconds}"
    )
    bulk = 0
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as singles:
        assert singles.stderr
        while singles.poll() is None:
            with psycopg.connect(url) as conn:
                with conn.cursor().copy(query("copy_messages").sql) as copying:
                    copying.write(_block(accounts, rows, seed=bulk))
                bulk += 1
        errors = singles.stderr.read().count("error") + singles.stderr.read().count(
            "ERROR"
        )
        failed = singles.returncode != 0
    script.unlink()
    folder.rmdir()
    with psycopg.connect(url) as conn:
        row = conn.execute(query("count_usage_differences").sql).fetchone()
    assert row is not None
    yield Measure(
        f"bulk ({bulk} COPY) with 8 writers",
        f"{errors + failed} errors",
        f"{row[0]} wrong sums",
        None,
        "none",
        not errors and not failed and row[0] == 0,
        {"errors": errors, "failed": failed, "differences": row[0]},
    )


def _switch(url: str, how: str) -> None:
    with psycopg.connect(url) as conn:
        conn.execute(query(f"{how}_rollup").sql)


def _reported(measure: Measure) -> Measure:
    """Return the line without a target."""
    return Measure(
        measure.name,
        measure.value,
        measure.floor,
        measure.ratio,
        "reported",
        None,
        measure.details,
    )


def _block(accounts: list[UUID], rows: int, seed: int = 2) -> bytes:
    """Return *rows* messages of the last four weeks in the format of COPY."""
    chance = random.Random(seed)
    now = datetime.now(UTC)
    lines = []
    for user in chance.choices(accounts, k=rows):
        at = now - timedelta(minutes=chance.randrange(40_000))
        lines.append(
            f"{user}\t{uuid4()}\t{user}\t{at.isoformat()}"
            "\t900\t0\t4000\t300\tm\t0.012\t1.44\n"
        )
    return "".join(lines).encode()
