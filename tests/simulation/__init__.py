"""Simulates years of a Stripe account with unreliable deliveries.

    python -m tests.simulation --seeds 50

The fake Stripe changes customers and subscriptions; its events are lost, repeated,
delayed and reordered, and eight workers handle them concurrently. `life` makes the
changes to what `people` and `catalog` draw, and `history` records each version of each
object. `checks` compares the database with that history, by the rules in `users` and
`claims`. They share no code with the product, and follow its documentation alone.
"""
