"""`pyapp db check --data`: stored sums compared with their rows."""

from collections.abc import Iterator
from dataclasses import asdict
from decimal import Decimal
from typing import Any, TypeVar

from pyapp.cli.console import counted, print_json, say
from pyapp.data_check import (
    DataCheck,
    Drift,
    ReferralDrift,
    UsageDrift,
    check_data,
)
from pyapp.errors import DataDriftError

R = TypeVar("R")
# At most 80 columns.
_DAY = "{:<36}  {:<10}  {:<17}  {:>11}"
_USER = "{:<36}  {:<16}  {:>11}  {:>11}"
_SHORT = {
    "input_tokens": "input",
    "output_tokens": "output",
    "cache_creation_input_tokens": "cache writes",
    "cache_read_input_tokens": "cache reads",
}


def run_data_check(url: str, *, limit: int, is_repairing: bool, as_json: bool) -> None:
    """Print the differences; raise an error if some remain."""
    result = check_data(url, limit=limit, is_repairing=is_repairing)
    if as_json:
        print_json(_as_object(result))
    else:
        for line in _lines(result):
            say(line)
    if result.remaining:
        remedy = (
            "see above"
            if is_repairing and not as_json
            else "repair them by: pyapp db check --data --repair"
        )
        sums = counted(result.remaining, "sum")
        raise DataDriftError(f"{sums} not equal to the rows summed: {remedy}")


def _as_object(result: DataCheck) -> dict[str, Any]:
    """Return the JSON object; docs/operations.md documents its keys."""
    return {
        "compared": {"days": result.days, "users": result.users},
        "usage": _section(result.usage),
        "referrals": _section(result.referrals),
        "raised": _section(result.raised),
        "over_limit": _section(result.over_limit),
        "locked": _section(result.locked),
    }


def _section(drift: Drift[Any]) -> dict[str, Any]:
    rows = [asdict(row) for row in drift.rows]
    return {"found": drift.found, "repaired": drift.repaired, "rows": rows}


def _lines(result: DataCheck) -> Iterator[str]:
    if result.usage.found:
        yield _DAY.format("payer", "day", "usage_daily", "off by")
        yield from _rows(result.usage, _day_lines)
        yield ""
    if result.referrals.found:
        yield _USER.format("user", "users", "kept", "exact")
        yield from _rows(result.referrals, _user_lines)
        yield ""
    if result.raised.found:
        yield "More referral credits than granted, given by hand and kept:"
        yield _USER.format("user", "users", "kept", "granted")
        yield from _rows(result.raised, _credit_lines)
        yield ""
    for user in result.over_limit.rows:
        yield (
            f"{user.user_id} has completed {user.completed_count} referrals and may"
            f" have {user.referral_limit}: raise referral_limit, then repair again"
        )
    if result.locked.found:
        yield (
            f"not repaired, because other transactions have locked the rows:"
            f" {result.locked.found:,}; repair again when they have ended"
        )
    repaired = result.usage.repaired + result.referrals.repaired
    if repaired:
        users = counted(result.referrals.repaired, "user")
        yield f"repaired: {_days(result.usage.repaired)}, {users}"
    if not result.remaining and not repaired:
        yield (
            "usage_daily equals messages, users equal referrals:"
            f" {_days(result.days)}, {counted(result.users, 'user')}"
        )


def _days(count: int) -> str:
    return counted(count, "payer's day", "payers' days")


def _rows(drift: Drift[R], lines: Any) -> Iterator[str]:
    for row in drift.rows:
        yield from lines(row)
    if more := drift.found - len(drift.rows):
        yield f"and {more:,} more"


def _day_lines(row: UsageDrift) -> Iterator[str]:
    differences = row.differences()
    first, *others = differences
    more = f" (+{len(others)})" if others else ""
    what = _SHORT.get(first, first) + more
    if row.kept_messages is None:
        what = "no row, credits"
        first = "credits"
    elif row.recorded_messages is None:
        what = "no messages"
    off = _fitted(differences.get(first, Decimal(0)), "+")
    yield _DAY.format(str(row.subject_id), f"{row.day}", what, off)


def _user_lines(row: ReferralDrift) -> Iterator[str]:
    if row.kept_count != row.completed_count:
        counts = (row.kept_count, row.completed_count)
        yield _USER.format(str(row.user_id), "referral_count", *counts)
    if row.kept_credits < row.granted_credits:
        yield from _credit_lines(row)


def _credit_lines(row: ReferralDrift) -> Iterator[str]:
    amounts = (_fitted(row.kept_credits), _fitted(row.granted_credits))
    yield _USER.format(str(row.user_id), "referral_credits", *amounts)


def _fitted(value: Decimal, sign: str = "") -> str:
    """Return *value* in at most 11 characters: exact, rounded, or as a power of ten."""
    exact = format(value, f"{sign},f")
    if "." in exact:
        exact = exact.rstrip("0").rstrip(".")
    short = format(value, f"{sign},.0f" if abs(value) >= 1000 else f"{sign}.3e")
    return next(
        (text for text in (exact, short) if len(text) <= 11),
        format(value, f"{sign}.2e"),
    )
