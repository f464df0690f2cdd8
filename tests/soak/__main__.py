"""python -m tests.soak --seconds 600: load and kills, then the checks."""

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from random import Random
from uuid import UUID

from pyapp._core.connection import connect
from pyapp._core.queries import schema_text
from pyapp.devtools.server.embedded import EmbeddedServer
from tests.soak import clients
from tests.soak.account import Account, make_fake, open_account
from tests.soak.ledger import BrokenRuleError, Client, Ledger
from tests.soak.rules import find_broken
from tests.temp_server import temp_server

MAINTAIN = "from pyapp.cli import main; main(['db', 'maintain'])"
Work = Callable[[Client], None]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    # One kill per minute, and at least three in a shorter run.
    every = min(60.0, options.seconds / 4)
    settings = {"synchronous_commit": "on", "max_connections": "100"}
    with ExitStack() as stack:
        server = stack.enter_context(temp_server(settings=settings))
        ledger = Ledger(server.url, options.seed)
        with connect(server.url) as conn:
            conn.execute(schema_text().encode())
        account = open_account(ledger, stack.enter_context(make_fake(options.seed)))
        with _working(ledger, account):
            kills = _kill(server, ledger, options.seconds, every)
        broken = _check(ledger, account)
    _print_table(ledger, options.seconds)
    for line in broken:
        print(line)
    if not broken:
        print(
            f"kills: {kills}; rules 1 to 9 hold, every confirmed write is stored once"
        )
    return 1 if broken else 0


@contextmanager
def _working(ledger: Ledger, account: Account) -> Iterator[None]:
    """Run all clients until the block ends."""
    with connect(ledger.url) as conn:
        payers = clients.make_payers(conn)
    codes: list[tuple[UUID, str]] = []
    jobs: list[tuple[str, int, Work]] = [
        ("alone", 2, partial(clients.write_one, payers=payers)),
        ("in batches", 1, partial(clients.write_batch, payers=payers)),
        ("by COPY", 1, partial(clients.write_copy, payers=payers)),
        ("repeated", 1, partial(clients.repeat, payers=payers)),
        ("periods", 1, partial(clients.move_period, payers=payers)),
        ("referrals", 3, partial(clients.refer, codes=codes)),
        ("sessions", 1, clients.sign_in),
        ("changes", 1, account.change),
        ("deliveries", 2, account.deliver),
        ("reconciliations", 1, account.reconcile_or_replay),
        ("maintenance", 1, _maintain),
    ]
    threads = []
    for name, number, work in jobs:
        for n in range(number):
            client = Client(ledger, name, Random(f"{ledger.seed} {name} {n}"))
            threads.append(threading.Thread(target=client.run, args=(work,)))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ledger.is_over.set()
        for thread in threads:
            thread.join()


def _maintain(client: Client) -> None:
    """Run `pyapp db maintain`; it may fail with one line if the server is down."""
    ledger = client.ledger
    run = subprocess.run(
        [sys.executable, "-c", MAINTAIN],
        env=os.environ | {"DATABASE_URL": ledger.url},
        capture_output=True,
        text=True,
    )
    error = run.stderr.strip()
    if run.returncode and not (error.startswith("error: ") and "\n" not in error):
        raise BrokenRuleError(f"pyapp db maintain printed: {error}")
    ledger.note("maintenance", run.returncode == 0)
    with ledger.lock:
        ledger.lost["maintenance"] += run.returncode != 0
    ledger.is_over.wait(5)


def _kill(server: EmbeddedServer, ledger: Ledger, seconds: int, every: float) -> int:
    """Kill the server repeatedly, and print progress; return the number of kills."""
    began = printed = time.monotonic()
    kills = written = 0
    while not ledger.is_over.wait(0.2) and time.monotonic() < began + seconds:
        now = time.monotonic()
        if now > began + (kills + 1) * every:
            server.kill()
            server.start()
            kills += 1
        if now > printed + min(10, every / 2):
            with ledger.lock:
                counts = ledger.counts.copy()
            before, written = written, sum(counts[kind] for kind in clients.MESSAGES)
            rate, printed = (written - before) / (now - printed), now
            print(
                f"{now - began:4.0f} s: {written:,} messages ({rate:.0f}/s),"
                f" {counts['referrals']:,} referrals,"
                f" {counts['deliveries']:,} deliveries, kills: {kills}",
                flush=True,
            )
    return kills


def _check(ledger: Ledger, account: Account) -> list[str]:
    if ledger.failure is not None:
        failure = ledger.failure
        is_rule = isinstance(failure, BrokenRuleError)
        return [(str(failure) if is_rule else repr(failure)).splitlines()[0]]
    account.settle()
    with connect(ledger.url) as conn:
        return list(find_broken(conn, ledger, account))


def _print_table(ledger: Ledger, seconds: int) -> None:
    # Lost are attempts without a server, and those whose connection was lost.
    print(f"\n{'confirmed':22}{'number':>10}{'a second':>10}{'lost':>7}")
    for kind, number in sorted(ledger.counts.items()):
        rate, lost = number / seconds, ledger.lost[kind]
        print(f"{kind:22}{number:>10,}{rate:>10.1f}{lost:>7}")
    print()


if __name__ == "__main__":
    sys.exit(main())
