"""Errors can be sent from one process to another."""

import inspect
import pickle

import pytest

from pyapp import errors

KINDS = [
    kind
    for kind in vars(errors).values()
    if inspect.isclass(kind) and issubclass(kind, errors.PyappError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_error_is_equal_after_pickling(
    kind: type[errors.PyappError],
):
    error = kind("web")

    received = pickle.loads(pickle.dumps(error))

    assert type(received) is kind
    assert (str(received), vars(received)) == (str(error), vars(error))
