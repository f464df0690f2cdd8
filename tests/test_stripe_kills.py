"""Workers killed by SIGKILL and a server that crashes: no delivery is half applied."""

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
from tests.simulation.life import START, begin

NUMBERS = count(1)
SEED = 7
DELIVERIES = 200


@pytest.fixture
def twins(durable_server: EmbeddedServer) -> Iterator[tuple[Twins, Iterator[Delivery]]]:
    """Return twin databases, and deliveries without end of lives like the simulated."""
    name = f"kills{next(NUMBERS)}"
    with FakeStripe(seed=SEED, start=START) as fake:
        fake.deliveries.faults.shuffle = 3
        url = create_database(durable_server, name)
        with connect(url) as conn:
            conn.execute(schema_text().encode())
        life = begin(url, fake, Random(SEED), users=40)

        def deliver() -> Iterator[Delivery]:
            for _ in chain(life.births(10), life.changes(10**6)):
                yield from iter(fake.deliveries.take, None)

        twin = create_database(durable_server, f"{name}_twin", template=name)
        with make_twins(fake, url, twin) as made:
            yield made, deliver()


def create_database(
    server: EmbeddedServer, name: str, template: str = "template1"
) -> str:
    """Return its URL; it goes with the server."""
    with connect(server.url) as conn:
        conn.autocommit = True
        conn.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
    return replace(server, database=name).url


def test_killed_worker_or_server_leaves_no_delivery_half_applied(
    durable_server: EmbeddedServer, twins: tuple[Twins, Iterator[Delivery]]
):
    """At any moment from the beginning until a little after the end."""
    choose = Random(SEED)
    crashes = choose.sample(range(DELIVERIES), 2)
    world, deliveries = twins
    # How much longer a worker takes, whose connection is new: found on the way.
    slower = 1.0

    def kill(worker: Worker, took: float) -> None:
        nonlocal slower
        worker.begin()
        time.sleep(choose.random() * 1.5 * slower * took)
        slower *= 0.9 if worker.pipe.poll() else 1.05
        worker.kill()

    def crash(worker: Worker, took: float) -> None:
        worker.begin()
        time.sleep(choose.random() * took)
        restart(durable_server, world)

    lost = [
        world.try_one(delivery, crash if number in crashes else kill)
        for number, delivery in zip(range(DELIVERIES), deliveries, strict=False)
    ]
    assert 20 < sum(lost) < DELIVERIES - 20


@pytest.mark.parametrize("table", ["users", "stripe_subscriptions", "stripe_events"])
def test_delivery_held_fast_where_it_writes_is_not_half_applied(
    durable_server: EmbeddedServer, twins: tuple[Twins, Iterator[Delivery]], table: str
):
    """Killed there; the fifth time the server dies, and not the worker."""
    world, deliveries = twins
    held = 0

    def interrupt(worker: Worker, _took: float) -> None:
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


def test_worker_killed_while_it_asks_stripe_leaves_nothing(
    twins: tuple[Twins, Iterator[Delivery]],
):
    world, deliveries = twins
    asked = 0

    def interrupt(worker: Worker, _took: float) -> None:
        nonlocal asked
        world.fake.faults.add("slow", method="GET", seconds=5)
        with connect(world.url) as watcher:
            watcher.autocommit = True
            worker.begin()
            asked += worker.is_stopped_by(watcher, "state = 'idle in transaction'")
        worker.kill()
        world.fake.faults.clear()

    for delivery in deliveries:
        before = asked
        assert world.try_one(delivery, interrupt) == (asked > before)
        if asked == 4:
            return


def restart(server: EmbeddedServer, world: Twins) -> None:
    world.disconnect()
    server.stop("immediate")
    server.start()
