"""Years of a Stripe account in seconds: what arrives is unreliable, what stays is not.

    python -m tests.simulation --seeds 50

Customers live through many changes in the fake Stripe while their events are lost,
doubled, late and shuffled, and handled by eight workers at once. `life` makes the
changes, `history` remembers what was true when, `checks` judges the database by that
and by `users`, in plain Python: none of it asks the code that is on trial.
"""
