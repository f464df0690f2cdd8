"""Runs all kinds of writes concurrently while the server is killed repeatedly.

    python -m tests.soak --seconds 600

`clients` write messages, referrals and sessions. `account` changes the fake Stripe and
runs webhooks, reconciliations and replays. Each records its confirmed commits in the
ledger. At the end `rules` checks the rules of the schema, that every confirmed write is
stored once, and that no other write is stored in part.
"""
