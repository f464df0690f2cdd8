"""The checks at the end of `make soak` find planted faults."""

from collections.abc import Callable, Iterator
from contextlib import closing
from decimal import Decimal
from random import Random
from uuid import UUID, uuid4

import pytest

from pyapp._core.connection import connect
from tests.soak import clients
from tests.soak.account import Account, make_fake, open_account
from tests.soak.ledger import Client, Ledger
from tests.soak.rules import find_broken

PLANTED = {
    "rule 1": """
        ALTER TABLE app.users DROP CONSTRAINT users_referral_code_key;
        UPDATE app.users SET referral_code = 'ref-' || repeat('0', 8)
            || repeat('-0000', 3) || '-' || repeat('0', 12)
    """,
    "rule 2": """
        DROP INDEX app.referrals_unordered_pair_idx;
        INSERT INTO app.referrals (referrer_id, referred_id, credits)
        SELECT r.referred_id, r.referrer_id, 0 FROM app.referrals AS r LIMIT 1
    """,
    "rule 3": "UPDATE app.users SET referral_count = 3",
    "rule 4": "UPDATE app.users SET referral_credits = referral_credits + 1",
    "rule 5": "ALTER TABLE app.messages DISABLE TRIGGER messages_append_only",
    "rule 6": """
        ALTER TABLE app.usage_slots DISABLE TRIGGER usage_slots_kept_by_trigger;
        UPDATE app.usage_slots SET messages = messages + 1
    """,
    "rule 8": "UPDATE app.stripe_subscriptions SET status = 'paused'",
    "rule 9": """
        ALTER TABLE app.users ALTER COLUMN quota DROP EXPRESSION;
        UPDATE app.users SET quota = 0
    """,
}
MISSING: dict[str, Callable[[Ledger], object]] = {
    "messages": lambda x: x.messages.update({(uuid4(), uuid4()): (Decimal(1), False)}),
    "users": lambda x: x.users.update({uuid4(): "ref-"}),
    "referrals": lambda x: x.referrals.update({uuid4(): uuid4()}),
    "sessions": lambda x: x.sessions.update(token=uuid4()),
}


@pytest.fixture(scope="module")
def soaked(module_database: str) -> Iterator[tuple[Ledger, Account]]:
    """Return ledger and account after a short run without kills."""
    ledger = Ledger(module_database, seed=1)
    with make_fake(seed=1) as fake:
        account = open_account(ledger, fake, users=60)
        with connect(module_database) as conn:
            payers = clients.make_payers(conn)
        client = Client(ledger, "all", Random(1))
        codes: list[tuple[UUID, str]] = []
        for _ in range(5):
            clients.write_one(client, payers)
            clients.write_batch(client, payers)
            clients.refer(client, codes)
            clients.sign_in(client)
            clients.repeat(client, payers)
        ledger.is_over.set()
        clients.write_copy(client, payers)
        client.close()
        account.settle()
        yield ledger, account


def test_no_rule_is_broken_without_a_fault(soaked: tuple[Ledger, Account]):
    with connect(soaked[0].url) as conn:
        assert list(find_broken(conn, *soaked)) == []


@pytest.mark.parametrize("rule", PLANTED)
def test_broken_rule_is_named(soaked: tuple[Ledger, Account], rule: str):
    with closing(connect(soaked[0].url)) as conn:
        conn.execute(PLANTED[rule].encode())
        found = list(find_broken(conn, *soaked))

    assert any(line.startswith(f"{rule} is broken") for line in found)


@pytest.mark.parametrize("kind", MISSING)
def test_missing_confirmed_write_is_named(soaked: tuple[Ledger, Account], kind: str):
    ledger, account = soaked
    MISSING[kind](ledger)
    with connect(ledger.url) as conn:
        found = list(find_broken(conn, ledger, account))

    assert any(line.startswith(f"the ledger of {kind} is") for line in found)
    getattr(ledger, kind).popitem()
