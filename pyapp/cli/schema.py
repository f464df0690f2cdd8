"""`pyapp db migrate | rollback | check | generate | maintain | erase-archived`."""

import logging
import re
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from pyapp import payload_archives as archives
from pyapp._core.config import load_settings
from pyapp._core.connection import connect
from pyapp._core.tool_sessions import AdvisoryLock, connect_unlimited
from pyapp.cli.arguments import AsJson, AsJsonLines, Scratch, Yes, require_id
from pyapp.cli.console import print_json, require_consent, say, warn
from pyapp.cli.repeating import Every, repeat
from pyapp.cli.schema_check import adopt, check, schema_url
from pyapp.devtools.generate.command import generate as draft_migration
from pyapp.devtools.generate.steps import Rename
from pyapp.devtools.migrations import migrator
from pyapp.devtools.migrations.files import MigrationFile
from pyapp.devtools.migrations.states import MEANINGS
from pyapp.devtools.server.urls import name_reached
from pyapp.errors import (
    ArchiveError,
    ConfigError,
    GenerateError,
)
from pyapp.payloads import create_payload_partitions, retire_payloads
from pyapp.sessions import delete_expired_sessions
from pyapp.usage_upkeep import cut_usage_days, fold_usage_rows

log = logging.getLogger("pyapp.sessions")

SWEEP = 10_000
GRANTS_ARE_LOST = (
    "It drops functions or views with their grants: run pyapp db roles next"
)
# Why days are left uncut, and spans unfolded.
UNCUT = "locked, or differing: pyapp db check --data"
UNFOLDED = "locked"
# How the first comment of a rollback begins that loses no data.
NO_LOSS = ("Loses nothing", "Loses no data")
UNKNOWN_LOSS = "Its file does not say what is lost."


def register(app: typer.Typer) -> None:
    """Add the commands to `pyapp db`."""
    for command in (
        migrate,
        rollback,
        adopt,
        check,
        generate,
        maintain,
        erase_archived,
    ):
        app.command()(command)


def migrate(
    out_of_order: Annotated[
        bool,
        typer.Option(
            "--out-of-order",
            help="Also apply files that sort before an applied migration.",
        ),
    ] = False,
    as_json: AsJsonLines = False,
) -> None:
    """Apply pending migrations, and create payload partitions ahead of time."""
    url = schema_url()
    has_grants = migrator.has_grants(url)
    applied = migrator.migrate(
        url,
        is_out_of_order=out_of_order,
        report=_reporter("applied", has_grants=has_grants, as_json=as_json),
        on_wait=_warn_of_wait,
    )
    created = create_payload_partitions(url)
    wrong = [s for s in migrator.list_migrations(url) if s.state != "applied"]
    if as_json:
        for status in wrong:
            print_json({"migration": status.name, "state": status.state})
        print_json({"payload_partitions_created": created})
        return
    for status in wrong:
        say(f"{status.name}: {MEANINGS[status.state]}")
    if not applied and not wrong:
        partitions = f"; payload partitions created: {created}" if created else ""
        say(f"Nothing to apply: the schema is up to date{partitions}")


def _reporter(
    state: Literal["applied", "rolled_back"], *, has_grants: bool, as_json: bool
) -> migrator.Report:
    """Return the function that prints the events of a run."""
    verb = "Applying" if state == "applied" else "Rolling back"

    def report(event: migrator.Event) -> None:
        file = event.file
        loses_grants = state == "applied" and file.needs_roles and has_grants
        if as_json:
            if event.kind == "ended":
                more = {"loses_grants": loses_grants} if state == "applied" else {}
                print_json({"migration": file.name, "state": state, **more})
            elif event.kind == "renamed":
                names = {"migration": file.name, "earlier_name": event.earlier_name}
                print_json({**names, "state": "renamed"})
        elif event.kind == "begins":
            say(f"{verb} {file.name}")
            if loses_grants:
                say(f"  {GRANTS_ARE_LOST}")
        elif event.kind == "renamed":
            say(f"Renamed {event.earlier_name} to {file.name}: it is applied already")

    return report


def _warn_of_wait(lock: AdvisoryLock) -> None:
    warn(f"Waiting for another run of migrations: {lock.describe_holder()}")


def rollback(
    count: Annotated[
        int, typer.Option("-n", min=1, help="Number of migrations, the last first.")
    ] = 1,
    everything: Annotated[bool, typer.Option("--all", help="All migrations.")] = False,
    yes: Yes = False,
    confirm: Annotated[
        str | None,
        typer.Option(
            metavar="DATABASE", help="Outside local: the name of the database, too."
        ),
    ] = None,
    as_json: AsJsonLines = False,
) -> None:
    """Roll back what was applied last, after showing which data is lost."""
    settings = load_settings()
    number = None if everything else count
    with connect(schema_url()) as conn:
        database = name_reached(settings.database_url, conn)
        name = conn.info.dbname
    if confirm not in (None, name):
        raise ConfigError(f"--confirm names {confirm}, and this is {database.name}")
    files = migrator.list_rollbacks(database.url, count=number)
    if not files:
        if not as_json:
            say(f"Nothing is applied at {database.name}")
        return
    if not as_json:
        say(f"To be rolled back at {database.name}:")
        for file in files:
            say(file.name)
            say(f"  {file.loss or UNKNOWN_LOSS}")
    if settings.environment != "local":
        if not yes or confirm is None:
            raise ConfigError(
                f"ENVIRONMENT is {settings.environment or 'not set'}: outside local,"
                f" give --yes --confirm DATABASE, with the name of the database"
            )
    elif not yes:
        if as_json:
            raise ConfigError("--json asks no question: give --yes to roll back")
        require_consent(
            _question(database.name, files),
            "Nothing is rolled back; --yes does it without asking.",
        )
    report = _reporter("rolled_back", has_grants=False, as_json=as_json)
    migrator.rollback(database.url, count=number, report=report, on_wait=_warn_of_wait)


def _question(name: str, files: list[MigrationFile]) -> str:
    losses = [file.loss for file in files]
    if "" in losses:
        return f"Roll back at {name}, with a loss that is not known?"
    if any(not loss.startswith(NO_LOSS) for loss in losses):
        return f"Roll back at {name}, with that loss?"
    return f"Roll back at {name}? No data is lost."


def generate(
    name: Annotated[str, typer.Argument(help="Name: verb_object.")],
    why: Annotated[
        str | None, typer.Option(help="Reason in one sentence, for the first comment.")
    ] = None,
    allow_destructive: Annotated[
        bool, typer.Option("--allow-destructive", help="Allow changes that lose data.")
    ] = False,
    rename: Annotated[
        list[str] | None,
        typer.Option(help="Rename a column.", metavar="TABLE.OLD=NEW"),
    ] = None,
    scratch: Scratch = None,
    as_json: AsJson = False,
) -> None:
    """Write the migrations from the present migrations to the SQL files."""
    renames = [_read_rename(text) for text in rename or []]
    try:
        paths = draft_migration(
            schema_url(),
            name,
            why=why,
            renames=renames,
            allow_destructive=allow_destructive,
            scratch_url=scratch,
        )
    except GenerateError as exc:
        if as_json:
            print_json({"migrations": [], "left": exc.left, "draft": exc.draft})
        else:
            for line in exc.draft.splitlines():
                say(line)
        raise
    if as_json:
        names = [path.stem for path in paths]
        print_json({"migrations": names, "left": [], "draft": ""})
        return
    for path in paths:
        say(f"Wrote {path.name} and its rollback, both proved")


def maintain(
    keep_months: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            max=1200,
            help="Drop payloads from before the last N months.",
        ),
    ] = None,
    archive: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            file_okay=False,
            help="First write the dropped payloads to gzipped CSV files.",
        ),
    ] = None,
    every: Every = None,
    as_json: AsJson = False,
) -> None:
    """Create partitions, delete sessions, cut and fold sums, retire payloads.

    With --every, only an error of the first run ends the command.
    """
    if archive is not None and keep_months is None:
        raise typer.BadParameter("--archive needs --keep-months")
    repeat(partial(_maintain, keep_months, archive, as_json), every)


def _maintain(keep_months: int | None, archive: Path | None, as_json: bool) -> None:
    url = schema_url()
    report = (lambda _: None) if as_json else say
    created = create_payload_partitions(url, keep_months=keep_months)
    report(f"Payload partitions created: {created}")
    deleted = _sweep_sessions(url)
    report(f"Expired sessions deleted: {deleted:,}")
    cut = cut_usage_days(url)
    left = f", left: {cut.left:,} ({UNCUT})" if cut.left else ""
    report(f"Usage days cut: {cut.done:,}{left}")
    folded = fold_usage_rows(url)
    left = f", spans left: {folded.left:,} ({UNFOLDED})" if folded.left else ""
    report(f"Usage rows folded: {folded.done:,}{left}")
    retired: list[str] = []
    if keep_months is not None:
        retired = retire_payloads(url, keep_months=keep_months, archive_folder=archive)
        report(f"Payload partitions dropped: {', '.join(retired) or 'none'}")
    if as_json:
        print_json(
            {
                "payload_partitions_created": created,
                "expired_sessions_deleted": deleted,
                "usage_days_cut": cut.done,
                "usage_days_left": cut.left,
                "usage_rows_folded": folded.done,
                "usage_spans_left": folded.left,
                "payload_partitions_dropped": retired,
            }
        )


def erase_archived(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", exists=True, file_okay=False, help="Folder of the archives."
        ),
    ],
    payer: Annotated[
        str, typer.Option(metavar="UUID", help="The user or fingerprint.")
    ],
    as_json: AsJson = False,
) -> None:
    """Remove a payer's payloads from the archives of db maintain."""
    subject_id = require_id("--payer", payer)
    result = archives.erase_archived(folder, subject_id)
    if as_json:
        print_json({"payer": subject_id, **asdict(result)})
    else:
        for name, count in result.removed.items():
            say(f"{name}: payloads removed: {count:,}")
        for name, reason in result.failed.items():
            say(f"{name}: not changed: {reason}")
    if result.failed:
        raise ArchiveError(
            f"{len(result.failed)} of the archives in {folder} could not be searched"
        )
    if not result.removed and not as_json:
        say(f"No archive in {folder} has payloads of {subject_id}")


def _read_rename(text: str) -> Rename:
    found = re.fullmatch(r"(\w+)\.(\w+)=(\w+)", text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is not table.old=new")
    return Rename(*found.groups())


def _sweep_sessions(url: str) -> int:
    """Delete expired sessions in batches, one transaction each."""
    swept = 0
    with connect_unlimited(url) as conn:
        while deleted := delete_expired_sessions(conn, limit=SWEEP):
            conn.commit()
            swept += deleted
    log.info("expired sessions deleted", extra={"count": swept})
    return swept
