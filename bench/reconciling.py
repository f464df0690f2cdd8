"""Reconciliation of all customers and subscriptions, against only listing them.

The fake Stripe and the measured work run in separate processes, so that the memory is
that of the reconciliation alone.
"""

import contextlib
import multiprocessing
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import stripe

from bench.load import query
from bench.measures import Measure, at_most
from pyapp._core.connection import connect
from pyapp.stripe_sync import reconcile
from pyapp.stripe_sync.pages import OBJECT_TYPES, Cursor, list_pages
from tests.fake_stripe import TEST_KEY

SECONDS = 2.0
MEGABYTES = 150.0


@dataclass(frozen=True)
class Ran:
    """Time and memory of one process, and the number of objects."""

    seconds: float
    megabytes: float
    seen: int


def measure_reconciliation(url: str, customers: int) -> Iterator[Measure]:
    """Reconcile *customers*, each with a subscription, first with an empty mirror."""
    with connect(url) as conn:
        for name in ("forget_stripe", "insert_seeded_users"):
            conn.execute(query(name).sql, {"users": customers})
    with _fake(customers) as base_url:
        pages = _run(_list_pages, url, base_url)
        objects = _run(_list_objects, url, base_url)
        for name in ("first", "again"):
            ran = _run(_reconcile, url, base_url)
            assert ran.seen == pages.seen == objects.seen == 2 * customers
            for floor, what in ((pages, "pages"), (objects, "objects")):
                yield at_most(
                    f"reconciliation, {name}, {customers:,}",
                    f"{ran.seconds:.1f} s",
                    f"{what} {floor.seconds:.1f} s",
                    ran.seconds / floor.seconds,
                    SECONDS,
                    {"reconciled": ran.seconds, "listed": floor.seconds},
                )
            yield at_most(
                f"its memory, {name}",
                f"{ran.megabytes:.0f} MB",
                f"{MEGABYTES:.0f} MB",
                ran.megabytes / MEGABYTES,
                1,
                {"megabytes": ran.megabytes, "listing": objects.megabytes},
            )


@contextlib.contextmanager
def _fake(customers: int) -> Iterator[str]:
    """Yield the base URL of a fake Stripe with this number of accounts."""
    command = [sys.executable, "-m", "tests.fake_stripe", "--port=0", "--frozen"]
    fake = subprocess.Popen(
        [*command, f"--accounts={customers}"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert fake.stdout is not None
        found = re.search(r"http://[\d.:]+", fake.stdout.readline())
        assert found is not None, "the fake does not start"
        yield found[0]
    finally:
        fake.terminate()
        fake.communicate()


def _run(work: Callable[[str, stripe.StripeClient], int], *where: str) -> Ran:
    # A new process, because a forked one starts with the memory of this one.
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_time, (work, *where))


def _time(
    work: Callable[[str, stripe.StripeClient], int], url: str, base_url: str
) -> Ran:
    client = stripe.StripeClient(TEST_KEY, base_addresses={"api": base_url})
    began = time.perf_counter()
    seen = work(url, client)
    return Ran(time.perf_counter() - began, _peak(), seen)


def _peak() -> float:
    """Return the peak memory of this process in MB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def _list_pages(_url: str, client: stripe.StripeClient) -> int:
    """List the pages as the reconciliation does, and discard them."""
    return sum(
        len(page.objects)
        for object_type in OBJECT_TYPES
        for page in list_pages(client, Cursor(object_type), 100)
    )


def _list_objects(_url: str, client: stripe.StripeClient) -> int:
    """List by Stripe's library."""
    customers = client.v1.customers.list({"limit": 100})
    subscriptions = client.v1.subscriptions.list({"limit": 100, "status": "all"})
    return sum(
        1 for found in (customers, subscriptions) for _ in found.auto_paging_iter()
    )


def _reconcile(url: str, client: stripe.StripeClient) -> int:
    with connect(url) as conn:
        return sum(reconcile(conn, client).seen.values())
