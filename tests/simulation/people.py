"""Draws users and customers, and the claims of customers on users."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from urllib.parse import quote
from uuid import UUID, uuid5

from tests.fake_stripe import FakeStripe

_NAMESPACE = UUID("6d0d1f2c-7f9e-4a41-9a5e-3f6f6f0c2b11")
# Claims of a new customer, by letter: the owner, another user.
_CLAIMS: tuple[tuple[dict[str, str], int], ...] = (
    ({"customer": "a"}, 60),
    ({"customer": "a", "subscription": "a"}, 8),
    ({"customer": "a", "subscription": "b"}, 7),
    ({"customer": "a", "reference": "b"}, 5),
    ({"subscription": "a"}, 8),
    ({"subscription": "a", "checkout": "b"}, 4),
    ({}, 8),
)


@dataclass(frozen=True, slots=True)
class Person:
    """A user of the application, who may not exist yet."""

    id: UUID
    email: str
    is_verified: bool


@dataclass(slots=True)
class People:
    """The users, and the customers by the users that they claim.

    `free` users exist and are claimed by no customer. `future` ones do not exist yet;
    `never` ones never will. `born` are to be inserted by the caller. `claims` are the
    users that each customer claims or may claim, by source: one for each source.
    Nothing is ever claimed for a customer in `mailed`, which has a user's address.
    """

    fake: FakeStripe
    choose: Random
    free: list[Person]
    future: list[Person]
    never: list[Person]
    born: list[Person] = field(default_factory=list)
    customers: list[str] = field(default_factory=list)
    claims: dict[str, dict[str, UUID]] = field(default_factory=dict)
    mailed: dict[str, Person] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)  # never deleted
    clock: str | None = None  # a test clock

    def draw_user(self) -> UUID:
        """Return a user that exists, mostly without a customer, or one that may not."""
        dice = self.choose.random()
        absent = [*self.future, *self.never]
        if dice < 0.12 and absent:
            return self.choose.choice(absent).id
        if (dice < 0.22 or not self.has_free) and self.claims:
            claimed = self.choose.choice(list(self.claims.values()))
            if claimed:
                return self.choose.choice(list(claimed.values()))
        return self.free.pop().id

    @property
    def has_free(self) -> bool:
        """Return False if only those are left whose addresses others have."""
        return len(self.free) > 20

    def draw_address(self) -> str:
        """Return an address that was never verified, so that it names no user."""
        return self.choose.choice([p for p in self.free if not p.is_verified]).email

    def be_born(self) -> None:
        """Let a user exist that may be claimed already."""
        self.born.append(self.future.pop(self.choose.randrange(len(self.future))))

    def new_customer(self) -> str:
        """Create a customer with the claims of its metadata; plan the other ones."""
        if self.choose.random() < 0.06 and self.has_free:
            return self._new_mailed_customer()
        kinds, weights = zip(*_CLAIMS, strict=True)
        (drawn,) = self.choose.choices(kinds, weights)
        users = {letter: self.draw_user() for letter in sorted(set(drawn.values()))}
        claims = {source: users[letter] for source, letter in drawn.items()}
        metadata = {"user_id": str(claims["customer"])} if "customer" in claims else {}
        if not metadata and self.choose.random() < 0.3:
            metadata = {"user_id": "me"}
        # The address of a user that it does not claim.
        customer = self._create(metadata, self.draw_address())
        self.claims[customer] = claims
        return customer

    def _new_mailed_customer(self) -> str:
        """Create a customer that only an address connects with a user."""
        dice = self.choose.random()
        person = self.free.pop()
        customer = self._create(
            {}, self.choose.choice((person.email.upper(), person.email))
        )
        self.mailed[customer] = person
        if dice < 0.3:
            # A user with a customer gets no other one by its address.
            owned = self._create({"user_id": str(person.id)}, "")
            self.claims[owned] = {"customer": person.id}
        return customer

    def copy_customer(self, customer: str) -> str:
        """Create a customer with the claim that the metadata of another one has."""
        owner = self.claims[customer]["customer"]
        again = self._create({"user_id": str(owner)}, "")
        self.claims[again] = {"customer": owner}
        return again

    def _create(self, metadata: dict[str, str], email: str) -> str:
        options: dict[str, object] = {"metadata": metadata}
        if email:
            options["email"] = email
        number, dice = len(self.customers), self.choose.random()
        if dice < 0.1:
            options["id"] = self.choose.choice(
                (
                    f"user {number}/é%20",
                    f"{uuid5(_NAMESPACE, str(number))}",
                    f"U{number}",
                )
            )
        elif dice < 0.12:
            options["test_clock"] = self._make_clock()
        customer = self.post("customers", options)
        self.customers.append(customer)
        return customer

    def _make_clock(self) -> str:
        if self.clock is None:
            now = self.fake.clock.now
            self.clock = self.post("test_helpers/test_clocks", {"frozen_time": now})
        return self.clock

    def claim(self, customer: str, user_id: UUID) -> None:
        """Let the customer's metadata claim the user."""
        metadata = {"user_id": str(user_id)}
        self.post(f"customers/{quote(customer, safe='')}", {"metadata": metadata})
        self.claims[customer]["customer"] = user_id

    def plan_claim(self, customer: str, source: str) -> UUID | None:
        """Return the user that *source* claims for the customer, the same each time."""
        claims = self.claims.get(customer)
        if claims is None:
            return None
        if source not in claims and self.choose.random() < 0.3:
            owners: Sequence[UUID] = [*claims.values()] or [self.draw_user()]
            is_other = self.choose.random() < 0.4
            claims[source] = self.draw_user() if is_other else owners[0]
        return claims.get(source)

    def forget_claim(self, customer: str) -> None:
        """Remove the claim of a customer that has no other; it claims none later."""
        if set(self.claims.get(customer, ())) != {"customer"}:
            raise IndexError
        path = f"customers/{quote(customer, safe='')}"
        self.post(path, {"metadata": {"user_id": ""}})
        del self.claims[customer]

    def post(self, path: str, params: dict[str, object]) -> str:
        name: str = self.fake.request("POST", f"/v1/{path}", params)["id"]
        return name
