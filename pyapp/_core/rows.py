"""Makes frozen rows as fast as plain ones.

A frozen dataclass sets each of its fields by a call, and a list of a hundred rows then
takes longer to make than to fetch. Here a row is made as a plain object with the same
slots, and frozen at the end by giving it its class.
"""

import functools
from collections.abc import Callable
from dataclasses import fields, is_dataclass, make_dataclass
from typing import Any, TypeVar

R = TypeVar("R")


@functools.cache
def row_maker(row: Callable[..., R]) -> Callable[..., R]:
    """Return a function that makes what *row*, a dataclass, does of the same values.

    Whatever else *row* may be is returned as it is.
    """
    kind: Any = row
    is_plain = is_dataclass(kind) and "__slots__" in vars(kind)
    if not is_plain or hasattr(kind, "__post_init__"):
        return row
    names = [field.name for field in fields(kind)]
    draft = make_dataclass("Draft", names, slots=True)

    def make(*values: Any) -> R:
        made: Any = draft(*values)
        made.__class__ = kind
        return made  # type: ignore[no-any-return]

    return make
