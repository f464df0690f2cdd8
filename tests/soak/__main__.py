"""python -m tests.soak --seconds 600: load and kills, then the rules one by one."""

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
from pyapp.devtools.server.temp_server import temp_server
from tests.soak import clients
from tests.soak.account import Account, make_fake, open_account
from tests.soak.ledger import BrokenRuleError, Client, Ledger
from tests.soak.rules import find_broken

MAINTAIN = "from pyapp.cli import main; main(['db', 'maintain'])"
Work = Callable[[Client], None]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    # Once a minute, and three times in half a minute.
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
        broken = _judge(ledger, account)
    _print_table(ledger, options.seconds)
    for line in broken:
        print(line)
    if not broken:
        print(f"kills: {kills}; rules 1 to 9 hold, every confirmed write is there once")
    return 1 if broken else 0


@contextmanager
def _working(ledger: Ledger, account: Account) -> Iterator[None]:
    """Let all clients work until the block ends."""
    with connect(ledger.url) as conn:
        payers = clients.make_payers(conn)
    codes: list[tuple[UUID, str]] = []
    crew: list[tuple[str, int, Work]] = [
        ("alone", 2, partial(clients.write_one, payers=payers)),
        ("in batches", 1, partial(clients.write_batch, payers=payers)),
        ("by COPY", 1, partial(clients.write_copy, payers=payers)),
        ("repeated", 1, partial(clients.repeat, payers=payers)),
        ("referrals", 3, partial(clients.refer, codes=codes)),
        ("sessions", 1, clients.sign_in),
        ("changes", 1, account.live),
        ("deliveries", 2, account.deliver),
        ("reconciliations", 1, account.mend),
        ("maintenance", 1, _maintain),
    ]
    threads = []
    for name, number, work in crew:
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
    """What an operator runs by cron; it may say that nobody is there, in one line."""
    ledger = client.ledger
    run = subprocess.run(
        [sys.executable, "-c", MAINTAIN],
        env=os.environ | {"DATABASE_URL": ledger.url},
        capture_output=True,
        text=True,
    )
    told = run.stderr.strip()
    if run.returncode and not (told.startswith("error: ") and "\n" not in told):
        raise BrokenRuleError(f"pyapp db maintain says: {told}")
    ledger.note("maintenance", run.returncode == 0)
    with ledger.lock:
        ledger.lost["maintenance"] += run.returncode != 0
    ledger.is_over.wait(5)


def _kill(server: EmbeddedServer, ledger: Ledger, seconds: int, every: float) -> int:
    """Kill the server again and again, and say how it goes; return how often."""
    began = told = time.monotonic()
    kills = written = 0
    while not ledger.is_over.wait(0.2) and time.monotonic() < began + seconds:
        now = time.monotonic()
        if now > began + (kills + 1) * every:
            server.kill()
            server.start()
            kills += 1
        if now > told + min(10, every / 2):
            with ledger.lock:
                counts = ledger.counts.copy()
            before, written = written, sum(counts[kind] for kind in clients.MESSAGES)
            rate, told = (written - before) / (now - told), now
            print(
                f"{now - began:4.0f} s: {written:,} messages ({rate:.0f}/s),"
                f" {counts['referrals']:,} referrals,"
                f" {counts['deliveries']:,} deliveries, kills: {kills}",
                flush=True,
            )
    return kills


def _judge(ledger: Ledger, account: Account) -> list[str]:
    if ledger.failure is not None:
        failure = ledger.failure
        is_rule = isinstance(failure, BrokenRuleError)
        return [(str(failure) if is_rule else repr(failure)).splitlines()[0]]
    account.settle()
    with connect(ledger.url) as conn:
        return list(find_broken(conn, ledger, account))


def _print_table(ledger: Ledger, seconds: int) -> None:
    # Lost are the attempts that found nobody there, and those that were cut off.
    print(f"\n{'confirmed':22}{'number':>10}{'a second':>10}{'lost':>7}")
    for kind, number in sorted(ledger.counts.items()):
        rate, lost = number / seconds, ledger.lost[kind]
        print(f"{kind:22}{number:>10,}{rate:>10.1f}{lost:>7}")
    print()


if __name__ == "__main__":
    sys.exit(main())
