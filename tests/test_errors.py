"""The errors that a caller catches, also those that another process has raised."""

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
def test_error_is_the_same_after_its_way_between_processes(
    kind: type[errors.PyappError],
):
    error = kind("web")

    received = pickle.loads(pickle.dumps(error))

    assert type(received) is kind
    assert (str(received), vars(received)) == (str(error), vars(error))
