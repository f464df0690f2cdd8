"""A command that waits for Stripe says so, and ends after a bounded time."""

import json
import signal
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import stripe

from pyapp.cli import stripe_waits
from pyapp.errors import StripeRequestError
from pyapp.stripe_sync import client as api
from tests.fake_stripe import TEST_KEY
from tests.stripe_world import StripeWorld
from tests.support import run_cli

COMMANDS = ("reconcile", "replay", "retry")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the waits between requests instead of waiting."""
    seconds: list[float] = []
    monkeypatch.setattr(api, "sleep", seconds.append)
    return seconds


@pytest.fixture
def stripe_api(world: StripeWorld, monkeypatch: pytest.MonkeyPatch) -> StripeWorld:
    """Let the commands call the fake, which has an event that they request."""
    monkeypatch.setenv("DATABASE_URL", world.url)
    monkeypatch.setenv("ENVIRONMENT", "local")
    monkeypatch.setenv("STRIPE_API_BASE", world.fake.base_url)
    monkeypatch.setenv("STRIPE_SECRET_KEY", TEST_KEY)
    world.subscribe(world.create_customer(world.create_user()))
    return world


def add_unapplied_event(world: StripeWorld) -> None:
    """Store a failed event whose retry requests its object."""
    subscription = world.subscribe(world.create_customer(world.create_user()))
    world.fake.faults.add("error", times=None)
    shape: dict[str, Any] = {"id": "in_1", "object": "invoice", "customer": "cus_1"}
    shape["subscription"] = subscription
    shape["parent"] = {"subscription_details": {"subscription": subscription}}
    world.handle_event("invoice.paid", shape, client=world.client, id="evt_bad")
    world.fake.faults.clear()


@pytest.mark.parametrize("command", COMMANDS)
def test_an_outage_is_reported_and_ends_in_one_line(
    stripe_api: StripeWorld, waits: list[float], command: str
):
    if command == "retry":
        add_unapplied_event(stripe_api)
    stripe_api.fake.faults.add("cut", times=None)
    waits.clear()

    code, out, err = run_cli("stripe", command)

    host = stripe_api.fake.base_url.removeprefix("http://")
    *reports, error = err.splitlines()
    assert (code, out) == (1, ""), (out, err)
    assert len(waits) == 7
    assert len(reports) == 5
    first, *_, last = reports
    assert first.startswith(f"Stripe does not answer ({host}): attempt 4 of 8 in ")
    assert last.startswith(f"Stripe does not answer ({host}): attempt 8 of 8 in ")
    assert f"{host} failed 8 times: APIConnectionError: Remote end closed" in error


def test_waits_are_in_the_log_if_there_is_one(
    stripe_api: StripeWorld, waits: list[float], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYAPP_LOG", "json")
    stripe_api.fake.faults.add("error", times=5)

    code, _, err = run_cli("stripe", "reconcile")

    records = [json.loads(line) for line in err.splitlines()]
    reports = [each for each in records if each["message"] == api.NO_ANSWER]
    assert code == 0
    assert [each["attempt"] for each in reports] == [4, 5, 6]
    assert reports[0]["wait_seconds"] == round(waits[2], 1)
    assert reports[0]["host"] in stripe_api.fake.base_url
    assert reports[0]["error"].startswith("APIError: ")


def test_a_short_fault_is_not_reported(stripe_api: StripeWorld, waits: list[float]):
    stripe_api.fake.faults.add("error", times=2)

    code, _, err = run_cli("stripe", "reconcile")

    assert (code, err, len(waits)) == (0, "", 2)


def test_a_limited_rate_is_not_called_an_outage(
    stripe_api: StripeWorld, waits: list[float]
):
    stripe_api.fake.faults.add("rate_limit", retry_after=20)

    code, _, err = run_cli("stripe", "reconcile")

    assert (code, waits) == (0, [20])
    assert err.startswith("Stripe limits the rate of requests (127.0.0.1:")
    assert "attempt 2 of 8 in 20 seconds; RateLimitError" in err


def test_a_request_without_an_answer_is_reported_while_it_waits(
    stripe_api: StripeWorld, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(api, "_SILENCE", 0.01)
    stripe_api.fake.faults.add("slow", seconds=0.1)

    code, _, err = run_cli("stripe", "reconcile")

    assert code == 0
    assert err.splitlines()[0].endswith(
        " has not answered for 0.01 seconds; the request ends after 30"
    )


def test_no_attempt_begins_after_three_minutes(monkeypatch: pytest.MonkeyPatch):
    """Each request of a silent host lasts until its timeout."""
    now = [0.0]
    monkeypatch.setattr(api, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def pass_time(seconds: float) -> None:
        now[0] += seconds

    def time_out() -> None:
        pass_time(api.REQUEST_TIMEOUT)
        raise stripe.APIConnectionError("timed out")

    monkeypatch.setattr(api, "sleep", pass_time)
    with pytest.raises(StripeRequestError):
        api.with_retries(time_out, None)

    assert 120 < now[0] < 180 + api.REQUEST_TIMEOUT


@pytest.mark.parametrize("command", ["replay", "reconcile"])
def test_ctrl_c_ends_a_wait_at_once(
    stripe_api: StripeWorld, monkeypatch: pytest.MonkeyPatch, command: str
):
    """A reconciliation requests its pages in another thread."""
    is_over = threading.Event()

    def interrupt(_: float) -> None:
        main = threading.main_thread().ident
        assert main is not None
        if not is_over.is_set():
            signal.pthread_kill(main, signal.SIGINT)
            is_over.wait(10)

    stripe_api.fake.faults.add("error", times=None)
    monkeypatch.setattr(api, "sleep", interrupt)
    # pytest-xdist ignores the signal in its workers.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        began = time.monotonic()
        code, out, err = run_cli("stripe", command)
        assert time.monotonic() - began < 5
    finally:
        is_over.set()
        signal.signal(signal.SIGINT, handler)

    assert (code, out) == (130, "")
    assert err == "error: stopped by Ctrl-C; work reported as done is kept\n"


def test_the_command_leaves_no_handler_behind(
    stripe_api: StripeWorld, waits: list[float]
):
    run_cli("stripe", "reconcile")

    modules = {type(handler).__module__ for handler in api.log.handlers}
    assert stripe_waits.__name__ not in modules
