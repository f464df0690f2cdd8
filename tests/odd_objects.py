"""Objects of Stripe that cannot be read or stored, and what refuses them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.stripe_world import StripeWorld

Change = Callable[[dict[str, Any]], Any]


@dataclass
class OddClient:
    """A client that changes these objects in lists and alone; the key is their id."""

    client: Any
    changes: Mapping[str, Change]

    def raw_request(self, method_: str, url_: str, **params: Any) -> Any:
        response = self.client.raw_request(method_, url_, **params)
        data = response.data
        if "data" in data and data.get("object") == "list":
            data["data"] = [self._change(one) for one in data["data"]]
        elif data.get("id") in self.changes:
            response.data = self._change(data)
        return response

    def _change(self, one: dict[str, Any]) -> Any:
        return self.changes.get(one["id"], lambda same: same)(one)


def setting(**values: Any) -> Change:
    return lambda one: one | values


def without(*names: str) -> Change:
    return lambda one: {name: value for name, value in one.items() if name not in names}


def replaced_by(value: Any) -> Change:
    return lambda _: value


def customer(number: int) -> str:
    return f"cus_Seed{number:010}"


def subscription(number: int) -> str:
    return f"sub_Seed{number:010}"


RAISE = """
CREATE FUNCTION public.{name}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF {condition} THEN
        RAISE EXCEPTION 'not this one' USING ERRCODE = '{state}';
    END IF;
    RETURN NEW;
END;
$$;
CREATE TRIGGER {name} BEFORE INSERT OR UPDATE ON {table}
FOR EACH ROW EXECUTE FUNCTION public.{name}()
"""


def add_trigger(
    world: StripeWorld, name: str, table: str, condition: str, state: str
) -> None:
    """Add a trigger that raises an error with this SQLSTATE."""
    text = RAISE.format(name=name, table=table, condition=condition, state=state)
    world.conn.execute(text.encode())
