"""Bad values for every option of every command, with valid other arguments."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import typer

from pyapp.cli.app import make_app
from tests.bad_input.urls import UNREACHABLE, UNREADABLE
from tests.bad_input.values import ESCAPE, TEXTS

Values = Mapping[str, str]

# The texts that a shell can pass.
WORDS: Values = {
    name: TEXTS[name]
    for name in (
        "empty",
        "a space",
        "a quote",
        "DROP TABLE",
        "a dollar quote",
        "placeholders",
        "parameters",
        "backslashes",
        "right to left",
        "combining",
        "outside the first plane",
        "an escape sequence",
        "carriage return",
        "lines",
        "markup",
        "a path",
        "long",
    )
} | {"invalid UTF-8": "\udcff\udc80", "an option": "--nope"}

NUMBERS: Values = {
    "not a number": "seven",
    "empty": "",
    "minus one": "-1",
    "a fraction": "1.5",
    "an exponent": "1e3",
    "more months than years allow": "99999",
    "beyond int4": str(2**31),
    "beyond int8": str(2**63),
    "of 5,001 digits": "9" * 5001,
    "NaN": "NaN",
    "digits of another script": "\u0661\u0662",
    "with a quote": "1'; --",
    "an escape sequence": ESCAPE,
}

DURATIONS: Values = {
    "no unit": "90",
    "no number": "d",
    "empty": "",
    "minus one day": "-1d",
    "a fraction": "1.5d",
    "another unit": "1y",
    "two parts": "1d12h",
    "huge": "9" * 400 + "d",
    "the most that is read": "99999d",
    "digits of another script": "\u0661d",
    "an escape sequence": ESCAPE,
    "with a quote": "1d'",
}

TIMES: Values = {
    "not a time": "yesterday",
    "empty": "",
    "year 0": "0000-01-01",
    "year 10000": "10000-01-01",
    "before the first": "0001-01-01T00:00+14:00",
    "after the last": "9999-12-31T23:59-14:00",
    "a 30th of February": "2026-02-30",
    "minus infinity": "-infinity",
    "infinity": "infinity",
    "a number": "1777888999",
    "an unknown zone": "2026-01-01T00:00+99:99",
    "an escape sequence": ESCAPE,
    "with a quote": "2026-01-01'; --",
}

PAYERS: Values = {
    **WORDS,
    "unknown UUID": "00000000-0000-4000-8000-000000000000",
    "half a UUID": "00000000-0000-4000",
    "a UUID in braces": "{00000000-0000-4000-8000-000000000000}",
    "digits of another script": "\u0661" * 32,
    "unknown address": "nobody@example.com",
    "an address with a quote": "o'brien@example.com",
    "two at signs": "a@b@c",
    "only an at sign": "@",
    "an address with an escape sequence": f"a@b{ESCAPE}",
    "an address in invalid UTF-8": "a\udcff@example.com",
    "an address of right to left": "\u202ea@example.com",
}

# An empty URL means DATABASE_URL.
URLS: Values = {**UNREADABLE, **UNREACHABLE}

SCRATCH_URLS: Values = {
    name: URLS[name]
    for name in ("a word", "a slash in the password", "port x", "nothing listening")
}

# No path can be written or read as a file; `{folder}` is an empty folder.
PATHS: Values = {
    "empty": "",
    "a folder": "{folder}",
    "below a file": "/dev/null/x",
    "below a file, with an escape sequence": f"/dev/null/{ESCAPE}",
    "below a file, in invalid UTF-8": "/dev/null/\udcff",
    "in a folder without write access": "/proc/x",
    "with a name too long": "{folder}/" + "x" * 300,
    "an unreadable file": "/proc/self/mem",
}


@dataclass(frozen=True)
class Option:
    """An option or argument of a command."""

    command: tuple[str, ...]
    name: str
    flag: str
    is_switch: bool

    @property
    def key(self) -> str:
        return f"{' '.join(self.command)} {self.name}"


def list_options() -> Iterator[Option]:
    """Yield every option and argument of every command, as registered in typer."""
    groups: list[tuple[tuple[str, ...], Any]]
    groups = [((), typer.main.get_command(make_app()))]
    for words, command in groups:
        below = getattr(command, "commands", {})
        groups += [((*words, word), part) for word, part in below.items()]
        for parameter in command.params:
            if parameter.name == "help":
                continue
            is_option = parameter.param_type_name == "option"
            yield Option(
                command=words,
                name=parameter.name,
                flag=max(parameter.opts, key=len) if is_option else "",
                is_switch=is_option and parameter.is_flag,
            )


HOSTS: Values = {
    "empty": "",
    "a space": " ",
    "not an address": "256.256.256.256",
    "another machine": "192.0.2.1",
    "a URL": "http://localhost",
    "with a port": "localhost:80",
    "a long name": "a" * 64 + ".example",
    "an escape sequence": ESCAPE,
    "invalid UTF-8": "\udcff",
    "with a quote": "localhost'",
}
# None can be listened on.
ADDRESSES: Values = {
    **WORDS,
    **{f"{name}, with a port": f"{host}:1" for name, host in HOSTS.items()},
    "a port too large": "65536",
    "a port of many digits": "9" * 5001,
    "a port in digits of another script": "\u0661\u0662",
    "no port": "127.0.0.1:",
    "brackets without a port": "[::1]",
    "two ports": "127.0.0.1:1:2",
}
RENAMES: Values = {
    **WORDS,
    "no table": ".a=b",
    "three parts": "a.b.c=d",
    "with a quote": "users.name=x'; --",
}
USD: Values = {
    **NUMBERS,
    "a comma": "1,5",
    "a sign": "+1",
    "no digit before the point": ".5",
    "no digit after the point": "1.",
    "of 101 decimals": "0." + "1" * 101,
    "infinity": "Infinity",
}
SET = ("prices", "set", "m", "--input", "1", "--output", "1", "--from", "2100-01-01")
NIL = "00000000-0000-0000-0000-000000000000"
ADA = ("--user", "{user}")
LOG = "{log}"  # replaced by the name of a log without usage

# The command line for each option; `{}` is replaced by the bad value.
CASES: Mapping[str, tuple[Values, tuple[str, ...]]] = {
    "quota payer": (PAYERS, ("quota", "{}")),
    "quota sort": (WORDS, ("quota", "--all", "--sort", "{}")),
    "quota limit": (NUMBERS, ("quota", "--all", "--limit", "{}")),
    "plans add plan": (
        {name: text for name, text in WORDS.items() if name in {"empty", "a space"}},
        ("plans", "add", "{}", "--credits", "1"),
    ),
    "plans add credits": (USD, ("plans", "add", "team", "--credits", "{}")),
    "plans add prices": (
        {name: text for name, text in WORDS.items() if name in {"empty", "a space"}},
        ("plans", "add", "team", "--credits", "1", "--price", "{}"),
    ),
    "plans set plan": (WORDS, ("plans", "set", "--credits", "1", "--", "{}")),
    "plans set credits": (USD, ("plans", "set", "free", "--credits", "{}")),
    "plans price plan": (WORDS, ("plans", "price", "--", "{}", "price_1")),
    "plans price price_id": (WORDS, ("plans", "price", "--remove", "--", "free", "{}")),
    "referrals show user": (PAYERS, ("referrals", "show", "{}")),
    "referrals show limit": (NUMBERS, ("referrals", "show", "{user}", "--limit", "{}")),
    "usage by": (WORDS, ("usage", "--by", "{}")),
    "usage user": (PAYERS, ("usage", "--by", "day", "--user", "{}")),
    "usage fingerprint": (PAYERS, ("usage", "--by", "day", "--fingerprint", "{}")),
    "usage since": (TIMES, ("usage", "--by", "day", "--since", "{}")),
    "usage until": (TIMES, ("usage", "--by", "day", "--until", "{}")),
    "usage limit": (NUMBERS, ("usage", "--by", "day", "--limit", "{}")),
    "stats within": (NUMBERS, ("stats", "--within", "{}")),
    "stats output": (PATHS, ("stats", "--prometheus", "--output", "{}")),
    "stats listen": (ADDRESSES, ("stats", "--prometheus", "--listen", "{}")),
    "db rollback count": (NUMBERS, ("db", "rollback", "-n", "{}")),
    "db rollback confirm": (WORDS, ("db", "rollback", "-n", "0", "--confirm", "{}")),
    "db check url": (URLS, ("db", "check", "--url", "{}")),
    "db check scratch": (SCRATCH_URLS, ("db", "check", "--scratch", "{}")),
    "doctor scratch": (SCRATCH_URLS, ("doctor", "--scratch", "{}")),
    "db adopt scratch": (SCRATCH_URLS, ("db", "adopt", "--scratch", "{}")),
    "db check limit": (NUMBERS, ("db", "check", "--data", "--limit", "{}")),
    "db generate name": (WORDS, ("db", "generate", "{}")),
    "db generate why": (WORDS, ("db", "generate", "not a name", "--why", "{}")),
    "db generate rename": (RENAMES, ("db", "generate", "add_x", "--rename", "{}")),
    "db generate scratch": (
        SCRATCH_URLS,
        ("db", "generate", "add_x", "--scratch", "{}"),
    ),
    "db maintain keep_months": (NUMBERS, ("db", "maintain", "--keep-months", "{}")),
    "db maintain archive": (
        PATHS,
        ("db", "maintain", "--keep-months", "1", "--archive", "{}"),
    ),
    "db maintain every": (
        # A valid duration would repeat it forever.
        {name: text for name, text in DURATIONS.items() if text != "99999d"},
        ("db", "maintain", "--every", "{}"),
    ),
    "db erase-archived folder": (
        {name: path for name, path in PATHS.items() if name != "a folder"},
        ("db", "erase-archived", "{}", "--payer", NIL),
    ),
    "db erase-archived payer": (WORDS, ("db", "erase-archived", ".", "--payer", "{}")),
    "db docs output": (PATHS, ("db", "docs", "--output", "{}")),
    "db plan query": (WORDS, ("db", "plan", "{}")),
    "db plan values": (WORDS, ("db", "plan", "get_user", "--set", "{}")),
    "import usage files": (PATHS, ("import", "usage", "{}", *ADA)),
    "import usage user": (PAYERS, ("import", "usage", LOG, "--user", "{}")),
    "import usage fingerprint": (
        PAYERS,
        ("import", "usage", LOG, "--fingerprint", "{}"),
    ),
    "import usage at": (TIMES, ("import", "usage", LOG, *ADA, "--at", "{}")),
    "import usage provider": (
        WORDS,
        ("import", "usage", LOG, *ADA, "--provider", "{}"),
    ),
    "import usage allow_broken": (
        NUMBERS,
        ("import", "usage", LOG, *ADA, "--allow-broken", "{}"),
    ),
    "prices set model": (WORDS, ("prices", "set", *SET[3:], "--", "{}")),
    "prices set input": (USD, (*SET, "--input", "{}")),
    "prices set output": (USD, (*SET, "--output", "{}")),
    "prices set valid_from": (TIMES, (*SET, "--from", "{}")),
    "prices set provider": (WORDS, (*SET, "--provider", "{}")),
    "prices set cache_read": (USD, (*SET, "--cache-read", "{}")),
    "prices set cache_write": (USD, (*SET, "--cache-write", "{}")),
    "prices set cache_write_1h": (USD, (*SET, "--cache-write-1h", "{}")),
    "prices end model": (WORDS, ("prices", "end", "--from", "2101-01-01", "--", "{}")),
    "prices end valid_from": (TIMES, ("prices", "end", "m", "--from", "{}")),
    "prices end provider": (
        WORDS,
        ("prices", "end", "m", "--from", "2101-01-01", "--provider", "{}"),
    ),
    "prices delete model": (WORDS, ("prices", "delete", "--from", "now", "--", "{}")),
    "prices delete valid_from": (TIMES, ("prices", "delete", "m", "--from", "{}")),
    "prices delete provider": (
        WORDS,
        ("prices", "delete", "m", "--from", "now", "--provider", "{}"),
    ),
    "prices check within": (DURATIONS, ("prices", "check", "--within", "{}")),
    "prices report since": (TIMES, ("prices", "report", "--since", "{}")),
    "prices report until": (TIMES, ("prices", "report", "--until", "{}")),
    "users add email": (PAYERS, ("users", "add", "{}")),
    "users add name": (WORDS, ("users", "add", "{address}", "--name", "{}")),
    "users list search": (WORDS, ("users", "list", "--search", "{}")),
    "users show user": (PAYERS, ("users", "show", "{}")),
    "users anonymize user": (PAYERS, ("users", "anonymize", "--yes", "{}")),
    "users export user": (PAYERS, ("users", "export", "{}")),
    "users export output": (PATHS, ("users", "export", "{user}", "--output", "{}")),
    "sessions list payer": (PAYERS, ("sessions", "list", "{}")),
    "sessions list limit": (
        NUMBERS,
        ("sessions", "list", "{user}", "--limit", "{}"),
    ),
    "sessions revoke user": (PAYERS, ("sessions", "revoke", "--yes", "{}")),
    "stripe serve host": (HOSTS, ("stripe", "serve", "--host", "{}")),
    "stripe serve port": (NUMBERS, ("stripe", "serve", "--port", "{}")),
    "stripe serve metrics": (ADDRESSES, ("stripe", "serve", "--metrics", "{}")),
    "stripe events limit": (NUMBERS, ("stripe", "events", "--limit", "{}")),
    "stripe replay since": (DURATIONS, ("stripe", "replay", "--since", "{}")),
    "stripe discard event_id": (WORDS, ("stripe", "discard", "--yes", "--", "{}")),
    "stripe prune older_than": (DURATIONS, ("stripe", "prune", "--older-than", "{}")),
    "stripe reconcile every": (DURATIONS, ("stripe", "reconcile", "--every", "{}")),
}
