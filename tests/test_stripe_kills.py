"""A delivery is atomic when a worker is killed or the server crashes."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import chain, count
from random import Random

import pytest

from pyapp._core.connection import connect
from pyapp._core.queries import schema_text
from pyapp.devtools.server.embedded import EmbeddedServer
from tests.fake_stripe import Delivery, FakeStripe
from tests.killing import Twins, Worker, make_twins
from tests.simulation.begin import begin
from tests.simulation.life import START

NUMBERS = count(1)
SEED = 7
DELIVERIES = 200


@pytest.fixture
def twins(durable_server: EmbeddedServer) -> Iterator[tuple[Twins, Iterator[Delivery]]]:
    """Return twin databases, and an endless series of simulated deliveries."""
    name = f"kills{next(NUMBERS)}"
    with FakeStripe(seed=SEED, start=START) as fake:
        fake.deliveries.faults.shuffle = 3
        url = create_database(durable_server, name)
        with connect(url) as conn:
            conn.execute(schema_text().encode())
        life, _ = begin(url, fake, Random(SEED), users=80)

        def deliver() -> Iterator[Delivery]:
            for _ in chain(life.births(10), life.changes(10**6)):
                yield from iter(fake.deliveries.take, None)

        twin = create_database(durable_server, f"{name}_twin", template=name)
        with make_twins(fake, url, twin) as running:
            yield running, deliver()


def create_database(
    server: EmbeddedServer, name: str, template: str = "template1"
) -> str:
    """Create a database and return its URL; it is removed with the server."""
    with connect(server.url) as conn:
        conn.autocommit = True
        conn.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
    return replace(server, database=name).url


def test_delivery_is_atomic_when_worker_or_server_is_killed(
    durable_server: EmbeddedServer, twins: tuple[Twins, Iterator[Delivery]]
):
    """The kill comes at any moment from the start until shortly after the end."""
    choose = Random(SEED)
    crashes = choose.sample(range(DELIVERIES), 2)
    world, deliveries = twins
    # Ratio of a worker's time, with its new connection, to the twin's; adjusted below.
    ratio = 1.0

    def kill(worker: Worker, seconds: float) -> None:
        nonlocal ratio
        worker.begin()
        time.sleep(choose.random() * 1.5 * ratio * seconds)
        ratio *= 0.9 if worker.pipe.poll() else 1.05
        worker.kill()

    def crash(worker: Worker, seconds: float) -> None:
        worker.begin()
        time.sleep(choose.random() * seconds)
        restart(durable_server, world)

    lost = [
        world.try_one(delivery, crash if number in crashes else kill)
        for number, delivery in zip(range(DELIVERIES), deliveries, strict=False)
    ]
    assert 20 < sum(lost) < DELIVERIES - 20


@pytest.mark.parametrize("table", ["users", "stripe_subscriptions", "stripe_events"])
def test_delivery_killed_at_a_lock_is_atomic(
    durable_server: EmbeddedServer, twins: tuple[Twins, Iterator[Delivery]], table: str
):
    """The fifth time, the server is killed, not the worker."""
    world, deliveries = twins
    held = 0

    def interrupt(worker: Worker, _seconds: float) -> None:
        nonlocal held
        with closing(connect(world.url)) as holder:
            holder.execute(f"LOCK TABLE app.{table} IN SHARE MODE".encode())
            worker.begin()
            held += worker.is_stopped_by(
                holder, "cardinality(pg_blocking_pids(pid)) > 0"
            )
            if held == 5:
                restart(durable_server, world)
            else:
                worker.kill()

    while held < 5:
        world.try_one(next(deliveries), interrupt)


def test_worker_killed_during_a_fetch_leaves_nothing(
    twins: tuple[Twins, Iterator[Delivery]],
):
    world, deliveries = twins
    fetches = 0

    def interrupt(worker: Worker, _seconds: float) -> None:
        nonlocal fetches
        world.fake.faults.add("slow", method="GET", seconds=5)
        with connect(world.url) as watcher:
            watcher.autocommit = True
            worker.begin()
            fetches += worker.is_stopped_by(watcher, "state = 'idle in transaction'")
        worker.kill()
        world.fake.faults.clear()

    for delivery in deliveries:
        before = fetches
        assert world.try_one(delivery, interrupt) == (fetches > before)
        if fetches == 4:
            return


def restart(server: EmbeddedServer, world: Twins) -> None:
    world.disconnect()
    server.stop("immediate")
    server.start()
