"""`pyapp stats --prometheus`: the answers as metrics, printed, in a file, or served."""

import signal
import socket
import sys
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from pyapp import stats as queries
from pyapp.cli import stats_metrics as metrics
from pyapp.cli import stats_sections as sections
from pyapp.cli.listening import metrics_served
from tests.role_logins import login_name, role_logins
from tests.support import execute, run_cli
from tests.temp_server import free_port
from tests.test_cli_stats import add_a_bad_day

# Keys that are not figures, or that a metric has in another form.
NO_METRIC = {"id", "outcome", "last_error", "counts", "name"}


def families(text: str) -> dict[str, Metric]:
    """Return the metrics by name, as the client's own parser reads them."""
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Return the values by name and labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families(text).values()
        for sample in family.samples
    }


def printed(*arguments: str) -> str:
    code, out, err = run_cli("stats", "--prometheus", *arguments)

    assert (code, err) == (0, "")
    return out


def test_metrics_of_a_bad_day(committing: psycopg.Connection):
    add_a_bad_day(committing)

    found = samples(printed())

    for name, value in {
        ("pyapp_database_up",): 1,
        ("pyapp_messages_last_minute",): 1,
        ("pyapp_users_blocked",): 1,
        ("pyapp_stripe_events_failed",): 1,
        ("pyapp_stripe_run_outcome", "reconcile", "failed"): 1,
        ("pyapp_stripe_run_outcome", "replay", "running"): 1,
        ("pyapp_stripe_run_outcome", "replay", "failed"): 0,
        ("pyapp_stripe_run_differences", "reconcile"): 3,
        ("pyapp_stripe_run_repaired", "reconcile"): 2,
        ("pyapp_stripe_run_last_completed_timestamp_seconds", "reconcile"): 0,
        ("pyapp_payload_has_default_rows",): 1,
        ("pyapp_payload_months_ahead",): -1,
    }.items():
        assert (name, found[name]) == (name, value)
    received = found["pyapp_stripe_events_last_received_timestamp_seconds",]
    now = found["pyapp_stats_timestamp_seconds",]
    assert found["pyapp_table_size_bytes", "users"] > 0
    assert 170 < now - received < 200


def test_every_figure_of_the_json_has_a_metric():
    rows: dict[str, Any] = {
        "messages": queries.MessageRates,
        "users": queries.UserCounts,
        "events": queries.InboxCounts,
        "payloads": queries.PayloadMonths,
        "server": queries.ServerState,
    }
    lists: dict[str, Any] = {
        "tables": queries.TableSize,
        "unused_indexes": queries.UnusedIndex,
    }

    assert rows.keys() | lists.keys() | set(metrics.RUNS) == sections.QUESTIONS.keys()
    for name, row in rows.items():
        assert [key for key, *_ in metrics.GAUGES[name]] == list(row._fields)
    for name, row in lists.items():
        keys = {key for key, *_ in metrics.LABELLED[name][1]}
        assert keys == {*row._fields} - NO_METRIC
    run_keys = {key for key, *_ in metrics.RUN_GAUGES}
    assert run_keys == {*queries.LastRun._fields} - NO_METRIC


def test_names_follow_the_conventions(committing: psycopg.Connection):
    found = families(printed())

    assert len(found) > 30
    for name, family in found.items():
        assert name.startswith("pyapp_")
        assert family.documentation.endswith(".")
        assert ("seconds" in name) == name.endswith("timestamp_seconds")
        assert ("bytes" in name) == name.endswith("_bytes")
        assert not name.endswith("_total")
        labels = {label for one in family.samples for label in one.labels}
        assert labels <= {"section", "kind", "outcome", "table", "index", "version"}


def test_table_name_with_quotes_stays_one_label(committing: psycopg.Connection):
    committing.execute('CREATE TABLE app."odd""\\\n name" ()')

    assert ("pyapp_table_rows", 'odd"\\\n name') in samples(printed())


def test_file_is_replaced_in_one_step_and_readable(
    committing: psycopg.Connection, tmp_path: Path
):
    file = tmp_path / "pyapp.prom"
    file.write_text("old")
    with file.open() as reader:
        assert printed("--output", str(file)) == ""
        assert reader.read() == "old"

    assert samples(file.read_text())["pyapp_database_up",] == 1
    assert file.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [file]


def test_file_says_that_the_database_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    url = f"postgresql://me@localhost:{free_port()}/none"
    monkeypatch.setenv("DATABASE_URL", url)
    file = tmp_path / "pyapp.prom"

    code, out, err = run_cli("stats", "--prometheus", "--output", str(file))

    assert (code, out, err.count("\n")) == (1, "", 1)
    found = samples(file.read_text())
    assert found["pyapp_database_up",] == 0
    assert found["pyapp_stats_section_answered", "users"] == 0
    assert ("pyapp_users",) not in found


def test_folder_that_does_not_exist_is_named(
    committing: psycopg.Connection, tmp_path: Path
):
    file = tmp_path / "absent" / "pyapp.prom"

    code, out, err = run_cli("stats", "--prometheus", "--output", str(file))

    assert (code, out, str(file.parent) in err) == (1, "", True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--output", "x"],
        ["--listen", "9465"],
        ["--json", "--prometheus"],
        ["--prometheus", "--output", "x", "--listen", "9465"],
        ["--prometheus", "--listen", "x"],
    ],
)
def test_options_that_exclude_each_other_are_refused(arguments: list[str]):
    code, out, err = run_cli("stats", *arguments)

    assert (code, out, err.count("\n")) == (2, "", 1)


def test_port_in_use_is_named_once():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        found = run_cli("stats", "--prometheus", "--listen", str(port))

    reason = "Address already in use"
    error = f"error: cannot listen on 127.0.0.1 port {port}: {reason}\n"
    assert found == (1, "", error)


def test_server_that_has_ended_leaves_the_signals_as_they_were():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        run_cli("stats", "--prometheus", "--listen", address)

    after = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert after == before


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)

    code, out, err = run_cli("stats", "--prometheus")

    assert (code, out, "[cli]" in err) == (1, "", True)


def test_scrapers_share_one_question_and_see_a_lost_database(
    committing: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
):
    """The listener answers also while there is no database."""
    asked: list[datetime] = []
    original = sections.ask_all

    def ask(*arguments: Any) -> sections.Answers:
        answers = original(*arguments)
        asked.append(answers.at)
        return answers

    monkeypatch.setattr(metrics, "ask_all", ask)

    def scrape_twice() -> list[float]:
        port = free_port()
        with metrics_served(metrics.make_registry(10), "127.0.0.1", port):
            url = f"http://127.0.0.1:{port}/metrics"
            texts = [urllib.request.urlopen(url, timeout=10).read() for _ in "12"]
        return [samples(text.decode())["pyapp_database_up",] for text in texts]

    assert scrape_twice() == [1, 1]
    monkeypatch.setenv("DATABASE_URL", f"postgresql://localhost:{free_port()}/no")
    assert scrape_twice() == [0, 0]
    assert asked == [asked[0]]


@pytest.mark.parametrize("role", ["pyapp_readonly", "pyapp_sync", "pyapp_app"])
def test_each_section_answers_or_names_the_grant(
    database: str, monkeypatch: pytest.MonkeyPatch, role: str
):
    clients = {
        ("pyapp_database_connections",),
        ("pyapp_database_waiting_connections",),
        ("pyapp_database_oldest_transaction_timestamp_seconds",),
    }
    with role_logins(database) as logins:
        monkeypatch.setenv("DATABASE_URL", logins[role])
        code, out, err = run_cli("stats")
        text = printed()
        name = login_name(logins[role])

        if role == "pyapp_readonly":
            assert (code, err, "To read all" in out) == (0, "", False)
            assert "connections          this role sees only its own" in out
            assert ("pyapp_database_max_connections",) in samples(text)
            assert clients & samples(text).keys() == set()
            execute(database, f"GRANT pg_read_all_stats TO {name}")
            assert clients <= samples(printed()).keys()
            return
        remedy = f"an administrator runs: GRANT pyapp_readonly TO {name}"
        assert remedy in " ".join(out.split())
        assert samples(text)["pyapp_stats_section_answered", "server"] == 1
        execute(database, f"GRANT pyapp_readonly TO {name}")
        assert "To read all" not in run_cli("stats")[1]
        execute(database, "REVOKE SELECT ON app.messages FROM pyapp_readonly")
        if role == "pyapp_sync":
            assert "the owner of the schema runs: pyapp db roles" in run_cli("stats")[1]
