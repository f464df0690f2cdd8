"""Recording messages singly and in bulk, with and without the rollup."""

import contextlib
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import psycopg

from bench.contest import (
    Contestant,
    in_turn,
    measure_rate,
    median_ratio,
    pgbench_command,
)
from bench.load import query
from bench.measures import Measure, at_least, at_most

COPIED = 100_000
# Of each contestant, for each number of writers.
ROUNDS = 9
# "No worse" than the former rollup, less what a median of nine rounds varies by.
NO_WORSE = 0.97
# Minutes of the four weeks in which COPY and late messages write.
MINUTES = 40_000
# The statement that leaves its rollup, or none, enabled.
SWITCHES = {
    "present": "enable_present",
    "former": "enable_former",
    "plain": "disable_both",
}


def measure_inserts(url: str, accounts: list[UUID]) -> Iterator[Measure]:
    """Yield single messages: the same INSERT with the rollup, without, and the former.

    The three are triggers of one table and are enabled in turn. The messages recorded
    without the rollup are added to it at the end.
    """
    spread = rf"\set n random(1, {len(accounts)})"
    with former_rollup(url):
        for name, choice, clients, target, against_former in (
            ("one message, 8 writers", spread, 8, 0.72, NO_WORSE),
            ("one message, 32 writers", spread, 32, 0.68, NO_WORSE),
            ("one message, 32 writers, one payer", r"\set n 1", 32, 0.55, NO_WORSE),
        ):
            text = f"{choice}\n{query('insert_message').source}"
            rates = measure_rate(
                url,
                {
                    rollup: Contestant(text, prepare=partial(run, url, switch))
                    for rollup, switch in SWITCHES.items()
                },
                {rollup: {"model": rollup} for rollup in SWITCHES},
                clients=clients,
                rounds=ROUNDS,
            )
            for other, limit in (("plain", target), ("former", against_former)):
                yield _compare_rates(name, rates, other, limit)
    run(url, "repair_usage")


def _compare_rates(
    name: str, rates: Mapping[str, Sequence[float]], other: str, limit: float
) -> Measure:
    return at_least(
        name,
        f"{statistics.median(rates['present']):,.0f} /s",
        f"{other} {statistics.median(rates[other]):,.0f} /s",
        median_ratio(rates["present"], rates[other]),
        limit,
        {rollup: [*found] for rollup, found in rates.items()},
    )


@contextlib.contextmanager
def former_rollup(url: str) -> Iterator[None]:
    """Create the former rollup with the sums of all messages; drop it at the end."""
    run(
        url,
        "create_former_table",
        "fill_former_table",
        "create_former_function",
        "guard_former_table",
        "create_former_trigger",
        "vacuum_former_table",
    )
    try:
        yield
    finally:
        run(
            url,
            "enable_present",
            "drop_former_trigger",
            "drop_former_function",
            "drop_former_table",
        )


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
        f"{statistics.median(seconds['enable']):.2f} s",
        f"plain {statistics.median(seconds['disable']):.2f} s",
        median_ratio(seconds["enable"], seconds["disable"]),
        1.2,
        {"rollup": seconds["enable"], "plain": seconds["disable"]},
    )


def measure_mixture(
    url: str, accounts: list[UUID], rows: int, seconds: int
) -> Iterator[Measure]:
    """COPY while 8 clients write, move periods, cut and fold; then compare all sums."""
    account = rf"\set n random(1, {len(accounts)})"
    minutes = rf"\set minutes random(0, {MINUTES})"
    scripts = {
        # By the share of the transactions.
        24: (account, "insert_message"),
        4: (f"{account}\n{minutes}", "insert_late_message"),
        2: (f"{account}\n{minutes}", "move_account", "cut_account"),
        1: (account, "fold_account"),
    }
    bulk = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        options = [f"--time={seconds}", "--client=8"]
        for weight, (choice, *names) in scripts.items():
            script = folder / f"{weight}.sql"
            lines = [choice, *(query(name).source for name in names)]
            script.write_text("\n".join(lines), encoding="utf-8")
            options.append(f"--file={script}@{weight}")
        with (
            (folder / "log").open("w+", encoding="utf-8") as log,
            subprocess.Popen(
                pgbench_command(url, {"model": "present"}, *options),
                stdout=log,
                stderr=log,
            ) as singles,
        ):
            while singles.poll() is None:
                block = _block(accounts, rows, seed=bulk)
                with psycopg.connect(url) as conn:
                    with conn.cursor().copy(query("copy_messages").sql) as copying:
                        copying.write(block)
                    bulk += 1
            log.seek(0)
            errors = log.read().count("ERROR:")
    wrong = _count(url, "count_usage_differences")
    wrong_quotas = _count(url, "count_quota_differences")
    yield Measure(
        f"{bulk} COPY, 8 writers, cuts and folds",
        f"{errors + (singles.returncode != 0)} errors",
        f"{wrong + wrong_quotas} wrong sums",
        None,
        "none",
        not errors and singles.returncode == 0 and not wrong and not wrong_quotas,
        {
            "errors": errors,
            "status": singles.returncode,
            "differences": wrong,
            "quota_differences": wrong_quotas,
        },
    )


def run(url: str, *names: str) -> None:
    """Execute statements of bench/sql."""
    with psycopg.connect(url, autocommit=True) as conn:
        for name in names:
            conn.execute(query(name).sql)


def _count(url: str, name: str) -> int:
    with psycopg.connect(url) as conn:
        row = conn.execute(query(name).sql).fetchone()
    assert row is not None
    return int(row[0])


def _block(accounts: list[UUID], rows: int, seed: int = 2) -> bytes:
    """Return *rows* messages of the last four weeks in the format of COPY."""
    chance = random.Random(seed)
    now = datetime.now(UTC)
    lines = []
    for user in chance.choices(accounts, k=rows):
        at = now - timedelta(minutes=chance.randrange(MINUTES))
        lines.append(
            f"{user}\t{uuid4()}\t{user}\t{at.isoformat()}"
            "\t900\t0\t4000\t300\tm\t0.012\t1.44\n"
        )
    return "".join(lines).encode()
