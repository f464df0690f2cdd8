"""Rows are made fast, and are what their class would have made."""

import copy
import pickle
from dataclasses import FrozenInstanceError, dataclass, replace
from decimal import Decimal

import pytest

from pyapp._core.rows import row_maker
from pyapp.plans import Plan


def test_row_is_what_its_class_makes_of_the_same_values():
    made, plain = (
        row_maker(Plan)("free", None, Decimal(5)),
        Plan("free", None, Decimal(5)),
    )

    assert type(made) is Plan
    assert made == plain
    assert hash(made) == hash(plain)
    assert repr(made) == repr(plain)
    assert replace(made, id="paid") == replace(plain, id="paid")
    assert pickle.loads(pickle.dumps(made)) == copy.copy(made) == plain


def test_row_is_frozen():
    made = row_maker(Plan)("free", None, Decimal(5))

    with pytest.raises(FrozenInstanceError):
        made.id = "paid"


@pytest.mark.parametrize("values", [(), ("free",), ("free", None, 5, 6)])
def test_row_takes_as_many_values_as_it_has_fields(values: tuple[object, ...]):
    with pytest.raises(TypeError):
        row_maker(Plan)(*values)


def test_what_does_more_than_keep_its_values_is_called_itself():
    @dataclass(frozen=True, slots=True)
    class Checked:
        amount: int

        def __post_init__(self) -> None:
            if self.amount < 0:
                raise ValueError

    assert row_maker(Checked) is Checked
    assert row_maker(int) is int
