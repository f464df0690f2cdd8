"""What users have after events and reconciliations that real accounts gave.

Each file of `data/stripe_cases` is a case:

    {"why": ..., "plans": {plan: {"credits": n, "prices": [...]}}, "steps": [...],
     "outcome": {...}, "expect": {...}}

Steps, in order:

    {"event": type, "created": time, "object": {...}, "fields": {...}}
        A delivery of this event; `fields` replace the event's own.
    {"user": name, "verified": boolean, "created": time}
        A user signs up; with `created`, the quota's period starts then. Without such
        a step, the user `ada` exists from the start.
    {"record": name, "credits": n, "finished_at": time}
        The user has used credits.
    {"reconcile": {"customers": [...], "subscriptions": [...]}, "match_email": boolean,
     "refused": [id, ...], "conflicts": [id, ...]}
        Stripe lists exactly these objects. `refused` are the ids of the objects that
        are reported as refused, `conflicts` those with a claim on another user.

A time is `{"$in": seconds}` from now. `$user:name` is the user's id, `$email:name` the
address. `outcome` has results of deliveries by the number of the step. `expect` has
columns of each user and quota, or `sql:` and a query of one value.

Each case is run in two ways: by `handle_webhook` without an API key, and through the
endpoint, with an API key and with each delivery repeated.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import stripe
from starlette.testclient import TestClient

from pyapp import plans, quota, users
from pyapp._core.connection import connect, pool
from pyapp.stripe_sync import Difference, Refusal, handle_webhook, reconcile
from pyapp.stripe_sync.web import create_app
from tests.fake_stripe import TEST_SECRET, sign
from tests.listed_stripe import ListedObjects, listed_stripe, with_first_items
from tests.metering import add_months, add_user, new_message, record_one
from tests.stripe_world import make_event

CASES = sorted((Path(__file__).parent / "data" / "stripe_cases").glob("*.json"))
Json = dict[str, Any]
# Delivers a signed body, and returns the result.
Deliver = Callable[[bytes], str]


@dataclass
class CaseRun:
    """One run of a case in a database of its own."""

    conn: psycopg.Connection[Any]
    deliver: Deliver
    account: ListedObjects
    client: stripe.StripeClient
    now: int = field(default_factory=lambda: int(time.time()))
    user_ids: dict[str, UUID] = field(default_factory=dict)
    # The time of the newest event of each object.
    newest: dict[str, int] = field(default_factory=dict)

    def read(self, text: str) -> Json:
        """Return the case with times, ids and addresses in place of their names."""
        text = re.sub(r"\$user:(\w+)", lambda m: str(self._user_id(m[1])), text)
        text = re.sub(r"\$email:(\w+)", r"\1@example.com", text)
        case: Json = json.loads(text, object_hook=self._read_time)
        return case

    def _read_time(self, value: Json) -> Any:
        return self.now + value["$in"] if value.keys() == {"$in"} else value

    def _user_id(self, name: str) -> UUID:
        return self.user_ids.setdefault(name, uuid4())

    def add_plans(self, wanted: Mapping[str, Json]) -> None:
        for name, plan in wanted.items():
            plans.create_plan(
                self.conn, plan_id=name, monthly_credits=Decimal(plan["credits"])
            )
            for price in plan["prices"]:
                plans.add_plan_price(self.conn, plan_id=name, stripe_price_id=price)

    def add_user(self, step: Json) -> None:
        name = step["user"]
        columns: Json = {"id": self._user_id(name), "email": f"{name}@example.com"}
        if step.get("verified"):
            columns["email_verified_at"] = _moment(self.now)
        if "created" in step:
            created = _moment(step["created"])
            columns |= {"created_at": created, "quota_anchor": created}
            columns["next_quota_reset"] = add_months(created, 1)
        add_user(self.conn, **columns)

    def run(self, step: Json) -> str | None:
        """Take one step; return the result of a delivery."""
        if "event" in step:
            return self.deliver(self._event(step))
        if "user" in step:
            self.add_user(step)
        elif "record" in step:
            message = new_message(
                user_id=self._user_id(step["record"]),
                credits=Decimal(step["credits"]),
                finished_at=_moment(step["finished_at"]),
            )
            record_one(self.conn, message)
        else:
            self.reconcile(step)
        return None

    def _event(self, step: Json) -> bytes:
        """Return the event's body, and let Stripe have its newest object."""
        shape, created = step["object"], step["created"]
        fields = step.get("fields", {})
        self.account.now = created
        is_ours = not fields.keys() & {"account", "context"}
        object_id = shape.get("id", "")
        if is_ours and created >= self.newest.get(object_id, created):
            self.newest[object_id] = created
            is_deleted = step["event"] == "customer.deleted"
            self.account.put(shape | {"deleted": True} if is_deleted else shape)
        return make_event(step["event"], with_first_items(shape), created, **fields)

    def reconcile(self, step: Json) -> None:
        """Check that a dry run, a run and a second run report the same refusals."""
        self.account.lists, self.account.now = step["reconcile"], None
        refusals: list[Refusal] = []
        found: list[Difference] = []
        for is_dry_run in (True, False, False):
            refusals.clear()
            found.clear()
            reconcile(
                self.conn,
                self.client,
                dry_run=is_dry_run,
                match_email=step.get("match_email", False),
                on_difference=found.append,
                on_refusal=refusals.append,
            )
            refused = [one.object_id for one in refusals]
            conflicts = [one.object_id for one in found if one.kind == "conflict"]
            assert sorted(refused) == sorted(step.get("refused", []))
            assert sorted(conflicts) == sorted(step.get("conflicts", []))
        assert [one for one in found if one.is_repaired] == []

    def check(self, name: str, expected: Json) -> None:
        user_id = self._user_id(name)
        user = users.get_user(self.conn, user_id=user_id)
        current = quota.get_user_quota(self.conn, user_id=user_id)
        known = user._asdict() | current._asdict()
        actual = {key: _plain(self._value(key, known)) for key in expected}
        assert actual == expected

    def _value(self, key: str, known: Json) -> Any:
        if not key.startswith("sql:"):
            return known[key]
        query = key.removeprefix("sql:").replace("{tag}", "")
        row = self.conn.execute(query.encode()).fetchone()
        return None if row is None else row[0]


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _plain(value: Any) -> Any:
    """Return times as seconds, and numbers as JSON has them."""
    if isinstance(value, datetime):
        return int(value.timestamp())
    return float(value) if isinstance(value, Decimal) else value


@contextmanager
def by_function(url: str) -> Iterator[CaseRun]:
    with listed_stripe() as (account, client), connect(url) as conn:
        conn.autocommit = True

        def deliver(body: bytes) -> str:
            signature = sign(body, [TEST_SECRET])
            return handle_webhook(conn, body, signature, TEST_SECRET).result

        yield CaseRun(conn, deliver, account, client)


@contextmanager
def through_endpoint(url: str) -> Iterator[CaseRun]:
    with (
        listed_stripe() as (account, client),
        connect(url) as conn,
        pool(url, max_size=2) as connections,
    ):
        conn.autocommit = True
        web = TestClient(create_app(connections, TEST_SECRET, client))

        def post(body: bytes) -> str:
            headers = {"Stripe-Signature": sign(body, [TEST_SECRET])}
            response = web.post("/stripe/webhook", content=body, headers=headers)
            result: str = response.json()["result"]
            assert (response.status_code == 200) == (result != "failed")
            return result

        def deliver(body: bytes) -> str:
            result = post(body)
            assert post(body) == ("failed" if result == "failed" else "duplicate")
            return result

        yield CaseRun(conn, deliver, account, client)


@pytest.mark.parametrize("start", [by_function, through_endpoint])
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_case_gives_users_what_it_expects(path: Path, start: Any, database: str):
    with start(database) as run:
        case = run.read(path.read_text())
        run.add_plans(case["plans"])
        if not any("user" in step for step in case["steps"]):
            run.add_user({"user": "ada"})
        results = [run.run(step) for step in case["steps"]]
        expected = case.get("outcome", {})
        assert {number: results[int(number)] for number in expected} == expected
        for name, columns in case["expect"].items():
            run.check(name, columns)
        if start is through_endpoint:
            # What the events said is what Stripe lists.
            run.account.now = None
            reconcile(run.conn, run.client)
            for name, columns in case["expect"].items():
                run.check(name, columns)


def test_cases_are_found():
    assert len(CASES) >= 12
