"""Computes which user a customer must be linked to, from the claims on it.

The strongest claim counts: customer metadata, subscription metadata, checkout metadata,
client_reference_id, e-mail address. It takes effect when its user exists.
"""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from uuid import UUID

from tests.simulation.history import SOURCES, Claim, History


@dataclass(frozen=True, slots=True)
class Link:
    """The claim that is stored for a customer, and the user that it is linked to."""

    customer: str
    is_deleted: bool
    claim: Claim | None
    user_id: UUID | None


def find_known_claims(
    history: History, delivered: Set[str], bought: Mapping[str, str]
) -> dict[str, set[Claim]]:
    """Return the claims that the database must know, without those of customers.

    *bought* are the stored subscriptions and their customers.
    """
    known: dict[str, set[Claim]] = {}
    for event in delivered & history.checkouts.keys():
        customer, claims = history.checkouts[event]
        known.setdefault(customer, set()).update(claims)
    for subscription in bought.keys() & history.bought_for.keys():
        claim = Claim("subscription", history.bought_for[subscription])
        known.setdefault(bought[subscription], set()).add(claim)
    for customer, user_id in history.mailed.items():
        known.setdefault(customer, set()).add(Claim("email", user_id))
    return known


def find_strongest(claims: Set[Claim]) -> Claim | None:
    """Return the strongest claim; a customer has one user for each source."""
    return min(claims, key=lambda claim: SOURCES.index(claim.source), default=None)


def find_claim_faults(
    links: Mapping[str, Link],
    history: History,
    known: Mapping[str, Set[Claim]],
    users: Set[UUID],
    *,
    is_settled: bool,
    linked: Set[UUID],
) -> Iterator[str]:
    """Yield the customers that have another claim or user than they must.

    While deliveries run, a claim may be stronger than those that must be known. The
    users *linked* exist for so long that the claims on them must be in effect.
    """
    for name, link in links.items():
        if link.is_deleted:
            # Stripe names no user any more, and nothing depends on it.
            continue
        possible = history.claimants(name)
        strongest = find_strongest(known.get(name, set()))
        if link.claim is not None and link.claim.source == "customer":
            # The version of the customer is compared elsewhere.
            pass
        elif is_settled and link.claim != strongest:
            yield f"{name} should have the claim {strongest}: {link}"
        elif strongest and _rank(link.claim) > _rank(strongest):
            yield f"{name} has a weaker claim than {strongest}: {link}"
        elif link.claim and link.claim.user_id not in possible:
            yield f"{name} has a claim that nothing made: {link}"
        wanted = link.claim.user_id if link.claim else None
        if wanted in users & linked and link.user_id != wanted:
            yield f"{name} should be linked to {wanted}: {link}"
        elif link.user_id not in {None, *possible}:
            yield f"{name} is linked to a user that nothing named: {link}"


def find_conflicts(
    links: Mapping[str, Link], history: History, bought: Mapping[str, str]
) -> dict[str, UUID]:
    """Return the subscriptions whose claim does not win, with the user it names."""
    found = {}
    for subscription, user_id in history.bought_for.items():
        link = links.get(bought.get(subscription, ""))
        if link is None or link.is_deleted or link.claim is None:
            continue
        if link.claim.user_id != user_id:
            found[subscription] = user_id
    return found


def _rank(claim: Claim | None) -> int:
    return SOURCES.index(claim.source) if claim else len(SOURCES)
