"""Hundreds of changes, eight workers, unreliable deliveries: nothing goes back.

`make simulate SEEDS=50` does the same at full size.
"""

import pytest

from tests.simulation.run import simulate


# Of those whose deliveries are shuffled most and come soon: the last two are
# reconciled meanwhile, and the last one has no client.
@pytest.mark.parametrize("seed", [5, 20, 24])
def test_deliveries_and_reconciliation_leave_what_stripe_says(database: str, seed: int):
    report = simulate(database, seed, customers=80, changes=500)

    assert report.outcomes["applied"] > 200
    assert report.outcomes["stale"] > 10
    assert report.outcomes["duplicate"] > 50
