"""Everything at once, while the server is killed again and again.

    python -m tests.soak --seconds 600

`clients` write messages, referrals and sessions, `account` plays Stripe, its webhooks,
reconciliations and replays; each notes in the ledger what was confirmed to it. At the
end `rules` recounts: the rules of the schema hold, every confirmed write is there once,
and nothing else is there by half.
"""
