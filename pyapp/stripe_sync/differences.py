"""Differences between Stripe and the database: their kinds, and what explains them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from pyapp.stripe_sync.store import ObjectType, SyncedUser, UpsertResult

# Kinds of differences, in the order of a report.
KINDS = (
    "missing_here",
    "missing_there",
    "status",
    "price",
    "period",
    "created_at",
    "unlinked",
    "conflict",
    "unknown_price",
)


@dataclass(frozen=True, slots=True)
class Difference:
    """One disagreement between Stripe and the database.

    *kind* is one of KINDS. *object_id* is a customer, a subscription or a user.
    *user_id* is the object's user; for `unlinked`, the user with its e-mail address;
    for `conflict`, the user of a claim that does not win.
    """

    kind: str
    object_id: str
    user_id: UUID | None
    is_repaired: bool


def find_differences(
    object_type: ObjectType,
    upserted: Sequence[UpsertResult],
    users: Sequence[SyncedUser],
    is_dry_run: bool,
) -> Iterator[Difference]:
    """Yield the differences of objects, and those of users that no object explains."""
    ids = {one.id for one in upserted}
    explained = set()
    for one in upserted:
        if one.result != "applied":
            continue
        kinds = dict.fromkeys(one.differences, not is_dry_run)
        if one.user_id is None and "unlinked" in kinds:
            kinds["unlinked"] = False
        for kind, is_repaired in kinds.items():
            owner = one.user_id or one.proposed_user_id
            yield Difference(kind, one.id, owner, is_repaired)
        if one.conflicting_user_id:
            yield Difference("conflict", one.id, one.conflicting_user_id, False)
        if kinds:
            explained.add(one.user_id)
    released = {one.released_user_id for one in upserted}
    for user in users:
        # Users with a customer appear once with it, and again with a subscription,
        # unless the subscription claims the customer for another user.
        is_first = object_type == "customers" or user.id in released
        if is_first and user.id not in explained:
            for kind in user.differences:
                yield Difference(kind, str(user.id), user.id, not is_dry_run)
        if user.has_unknown_price and user.subscription_id in ids:
            yield Difference("unknown_price", user.subscription_id, user.id, False)
