"""What an event did: to the database, and as reported to the caller."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from pyapp.stripe_sync.objects import Event

log = logging.getLogger("pyapp.stripe")

Success = Literal["applied", "duplicate", "stale", "ignored"]
Result = Success | Literal["failed"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of processing an event.

    applied    the event changed the mirror or a user
    duplicate  the event was processed before; nothing changed
    stale      this state or a newer one is stored; nothing changed
    ignored    the event is stored and has no effect
    failed     nothing changed; the event is stored with `error`; deliver it again

    `is_busy` is True if it failed because of a lock or a timeout and may succeed if it
    is repeated. `attempts` counts the failures of a stored event; it is None if the
    event could not be stored. `user_ids` are the users that an applied event changed:
    their entitlement, or the customer that they are linked to.
    `conflicting_user_id` is a user that the event claims for a customer which a
    stronger claim or link gives to another user. `note` says why an event of another
    account or of the other mode was ignored.
    """

    event_id: str
    type: str
    result: Result
    error: str | None = None
    is_busy: bool = False
    attempts: int | None = None
    user_ids: tuple[UUID, ...] = ()
    conflicting_user_id: UUID | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Effect:
    """What an event did; "ambiguous" if its object has to be fetched first.

    `moved_user_ids` are the users whose period moved; `cut_moved_usage` is due.
    """

    result: Success | Literal["ambiguous"]
    user_ids: Sequence[UUID] = ()
    conflicting_user_id: UUID | None = None
    moved_user_ids: Sequence[UUID] = ()


def make_outcome(event: Event, effect: Effect) -> Outcome:
    """Return the outcome of an event that was not ambiguous; log a conflict."""
    assert effect.result != "ambiguous"
    if effect.conflicting_user_id is not None:
        log.warning(
            "stripe claim conflicts with another",
            extra={
                "event_id": event.id,
                "event_type": event.type,
                "conflicting_user_id": str(effect.conflicting_user_id),
            },
        )
    return Outcome(
        event.id,
        event.type,
        effect.result,
        user_ids=tuple(effect.user_ids),
        conflicting_user_id=effect.conflicting_user_id,
        note=event.foreign if effect.result == "ignored" else None,
    )
