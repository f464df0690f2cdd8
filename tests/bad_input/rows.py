"""Counts and sums that change when a command writes anything."""

COUNTS = """
    SELECT
        (SELECT count(*) FROM app.users),
        (SELECT count(*) FROM app.fingerprints),
        (SELECT count(*) FROM app.sessions),
        (SELECT count(*) FROM app.messages),
        (SELECT count(*) FROM app.message_payloads),
        (SELECT sum(messages) FROM app.usage_daily),
        (SELECT count(*) FROM app.referrals),
        (SELECT count(stripe_price_id) FROM app.plans),
        (SELECT count(*) FROM app.stripe_events),
        (SELECT count(*) FROM app.stripe_sync_runs),
        (SELECT max(updated_at) FROM app.users)
"""
