"""What a reconciliation finds, and how it says so."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from pyapp.stripe_sync.mirror import ObjectType, SyncedUser, UpsertResult

# In the order in which a report shows them.
KINDS = (
    "missing_here",
    "missing_there",
    "status",
    "price",
    "period",
    "created_at",
    "unlinked",
    "unknown_price",
)


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that Stripe and the database do not agree about.

    *kind* is one of KINDS; *object_id* is a customer, a subscription or a user.
    *user_id* is whose it is, or whose it may be by its e-mail if it is `unlinked`.
    """

    kind: str
    object_id: str
    user_id: UUID | None
    is_repaired: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """An object that could not be compared or repaired, and why.

    *object_id* is a customer or a subscription, or says that Stripe gave no id.
    """

    object_type: ObjectType
    object_id: str
    error: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is; `expected` is how many there are likely to be."""

    object_type: ObjectType | Literal["events"]
    seen: int
    expected: int


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What a run has seen and found, by kind, also before it was resumed.

    `failed` is how many objects could not be compared or repaired.
    """

    run_id: int
    is_dry_run: bool
    is_resumed: bool
    seen: Mapping[ObjectType, int]
    found: Mapping[str, int]
    repaired: Mapping[str, int]
    failed: int = 0

    @property
    def number_found(self) -> int:
        """Return how many differences there were."""
        return sum(self.found.values())


def find_differences(
    object_type: ObjectType,
    judged: Sequence[UpsertResult],
    users: Sequence[SyncedUser],
    is_dry_run: bool,
) -> Iterator[Difference]:
    """Return what differed; of users only what no object of theirs explains."""
    known = {user.id: user for user in users}
    shown = {one.id for one in judged}
    explained = set()
    for one in judged:
        if one.result != "applied":
            continue
        user = known.get(one.user_id) if one.user_id else None
        kinds = dict.fromkeys(one.differences, not is_dry_run)
        if one.user_id is None and "unlinked" in kinds:
            kinds["unlinked"] = False
        # A user has one customer; another that names him too is left alone.
        is_second = object_type == "customers" and user and user.customer_id != one.id
        if is_second and not is_dry_run and "missing_there" not in kinds:
            kinds["unlinked"] = False
        for kind, is_repaired in kinds.items():
            owner = one.user_id or one.proposed_user_id
            yield Difference(kind, one.id, owner, is_repaired)
        if kinds:
            explained.add(one.user_id)
    for user in users:
        # Every user comes up with his customer; with a subscription, once more.
        if object_type == "customers" and user.id not in explained:
            for kind in user.differences:
                yield Difference(kind, str(user.id), user.id, not is_dry_run)
        if user.has_unknown_price and user.subscription_id in shown:
            yield Difference("unknown_price", user.subscription_id, user.id, False)
