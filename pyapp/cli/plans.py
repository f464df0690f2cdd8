"""`pyapp plans list | add | set | price`."""

from typing import Annotated

import typer

from pyapp import plans
from pyapp._core.connection import connect
from pyapp._core.validation import MAX_INTEGER
from pyapp.cli.arguments import AsJson, AsJsonLines, parse_amount
from pyapp.cli.console import format_amount, print_json, print_table, say, warn
from pyapp.errors import PriceNotFoundError, PriceTakenError

HEADER = ("plan", "credits a month", "Stripe prices")

PlanId = Annotated[str, typer.Argument(metavar="PLAN", help="Id, such as team.")]
Credits = Annotated[
    str,
    typer.Option(metavar="N", help="Credits a month; one is one US cent of usage."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to `pyapp plans`."""
    app.command("list")(list_all)
    app.command()(add)
    app.command("set")(set_credits)
    app.command()(price)


def list_all(as_json: AsJsonLines = False) -> None:
    """List all plans with their Stripe prices, those with the fewest credits first."""
    with connect() as conn:
        found = plans.list_plans(conn, limit=MAX_INTEGER)
    if as_json:
        for plan in found:
            print_json(plan._asdict())
        return
    print_table(HEADER, map(_cells, found), numbers=HEADER[1:2], fitted=HEADER[2])


def add(
    plan: PlanId,
    credits: Credits,
    prices: Annotated[
        list[str] | None,
        typer.Option(
            "--price",
            metavar="PRICE",
            help="Stripe price that buys it; several: repeat.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a plan, with the Stripe prices that buy it."""
    amount = parse_amount("--credits", credits)
    if not plan.strip():
        raise typer.BadParameter("PLAN is empty")
    with connect() as conn:
        plans.create_plan(conn, plan_id=plan, monthly_credits=amount)
        for price_id in prices or []:
            plans.add_plan_price(conn, plan_id=plan, stripe_price_id=price_id.strip())
        found = plans.get_plan(conn, plan_id=plan)
    _report(found, as_json)
    if not prices and not as_json:
        say(f"No price buys it yet; add one by: pyapp plans price {found.id} PRICE")


def set_credits(plan: PlanId, credits: Credits, as_json: AsJson = False) -> None:
    """Set the monthly credits of a plan.

    Users with a Stripe customer get them at their next sync: pyapp stripe reconcile.
    Users without one, and fingerprints, keep the credits that they began with.
    """
    amount = parse_amount("--credits", credits)
    with connect() as conn:
        found = plans.set_plan_credits(conn, plan_id=plan, monthly_credits=amount)
    _report(found, as_json)


def price(
    plan: PlanId,
    price_id: Annotated[
        str, typer.Argument(metavar="PRICE", help="Stripe's id, such as price_1Mo.")
    ],
    remove: Annotated[
        bool, typer.Option("--remove", help="The price no longer buys the plan.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Let a Stripe price buy a plan.

    Users who pay the price get the plan at their next sync: pyapp stripe reconcile.
    """
    price_id = price_id.strip()
    with connect() as conn:
        plans.get_plan(conn, plan_id=plan)
        before = plans.list_plans(conn, limit=MAX_INTEGER)
        owners = [each.id for each in before if price_id in each.stripe_price_ids]
        if remove:
            if owners != [plan]:
                raise PriceNotFoundError(f"the plan {plan} does not have the price")
            plans.remove_plan_price(conn, stripe_price_id=price_id)
        elif owners and owners != [plan]:
            (owner,) = owners
            raise PriceTakenError(
                f"the price buys the plan {owner}; first:"
                f" pyapp plans price {owner} PRICE --remove"
            )
        else:
            plans.add_plan_price(conn, plan_id=plan, stripe_price_id=price_id)
        found = plans.get_plan(conn, plan_id=plan)
    if price_id.startswith("prod_"):
        warn("this looks like the id of a product; a subscription names a price")
    _report(found, as_json)


def _report(plan: plans.Plan, as_json: bool) -> None:
    if as_json:
        print_json(plan._asdict())
        return
    print_table(HEADER, [_cells(plan)], numbers=HEADER[1:2], fitted=HEADER[2])


def _cells(plan: plans.Plan) -> tuple[str, ...]:
    first, *others = plan.stripe_price_ids or [""]
    return (plan.id, format_amount(plan.monthly_credits), first, *others)
