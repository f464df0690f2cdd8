"""Random changes and unreliable deliveries to eight workers leave Stripe's state.

`make simulate` runs it at full size.
"""

import pytest

from pyapp._core.queries import schema_text
from tests.simulation.mutants import MUTANTS, mutate
from tests.simulation.run import simulate


# Seeds with many reordered deliveries; the last two reconcile concurrently, and the
# last one has no client.
@pytest.mark.parametrize("seed", [5, 20, 24])
def test_unreliable_deliveries_leave_the_state_of_stripe(database: str, seed: int):
    report = simulate(database, seed, customers=80, changes=500)

    assert report.outcomes["applied"] > 200
    assert report.outcomes["stale"] > 10
    assert report.outcomes["duplicate"] > 50
    assert report.failed
    assert report.refused > 5


@pytest.mark.parametrize("name", MUTANTS)
def test_schema_contains_the_rule_that_a_mutant_breaks(name: str):
    """`python -m tests.simulation.mutants` simulates each mutant."""
    schema = schema_text()

    assert mutate(schema, MUTANTS[name]) != schema
