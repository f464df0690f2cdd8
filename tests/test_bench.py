"""The load, report and plot of the benchmark; nothing is timed."""

import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from bench import engines
from bench.contest import Latency
from bench.days import create_user, cut
from bench.load import load, query
from bench.measures import at_least, compare_latency
from bench.plot import LINES, draw
from bench.report import WIDTH, render
from bench.webhooks import CUSTOMERS, apply, make_changes, make_customers
from bench.writing import SWITCHES, former_rollup, measure_mixture, run
from tests.fake_stripe import TEST_SECRET, sign
from tests.stripe_world import START


def test_load_is_complete_and_skewed(empty_database: str):
    load(empty_database, 3000, accounts=50)

    with psycopg.connect(empty_database) as conn:
        ranked = conn.execute(query("list_ranked_accounts").sql).fetchall()
        differences = conn.execute(query("count_usage_differences").sql).fetchone()
        indexes = conn.execute(
            "SELECT count(*) FROM pg_index WHERE indrelid = 'app.messages'::regclass"
        ).fetchone()
    assert sum(messages for _, messages in ranked) == 3000
    assert max(messages for _, messages in ranked[1:]) > 30
    assert differences == (0,)
    assert indexes == (8,)


def test_measured_days_are_cut_and_sums_stay_exact(empty_database: str):
    load(empty_database, 100, accounts=10)
    midnight = datetime.now(UTC).replace(
        hour=0, minute=0, second=0, microsecond=0
    ) - timedelta(days=3)
    day = {"midnight": midnight, "hour": 12, "busy": 200, "others": 3}
    uncut = "SELECT subject_id FROM app.uncut_usage"
    busy_rows = (
        "SELECT count(*) FROM app.usage_slots WHERE subject_id = %s AND slot > 0"
    )

    with psycopg.connect(empty_database, autocommit=True) as conn:
        conn.execute(query("trust_rows").sql)
        create_user(conn, day)
        moved = create_user(
            conn, {**day, "before": midnight - timedelta(days=5)}, slots=32
        )
        assert conn.execute(uncut).fetchall() == []
        assert conn.execute(busy_rows, [moved]).fetchone() == (31,)
        conn.execute(query("move_anchor").sql, {**day, "hour": 6, "user_id": moved})
        assert conn.execute(uncut).fetchall() == [(moved,)]
        cut(conn, moved)
        assert conn.execute(uncut).fetchall() == []
        accounts = [row[0] for row in conn.execute(query("list_ranked_accounts").sql)]
    assert len(accounts) == 10
    (mixture,) = measure_mixture(empty_database, accounts, rows=50, seconds=1)
    assert mixture.is_met, mixture


def test_former_rollup_takes_its_turn(empty_database: str):
    load(empty_database, 100, accounts=10)
    message = {"n": 1, "model": "test"}
    sums = (
        "SELECT (SELECT sum(messages)::integer FROM app.usage_daily),"
        " (SELECT sum(messages)::integer FROM bench.usage_daily)"
    )

    counts = []
    with (
        psycopg.connect(empty_database, autocommit=True) as conn,
        former_rollup(empty_database),
    ):
        for switch in SWITCHES.values():
            run(empty_database, switch)
            conn.execute(query("insert_message").sql, message)
            counts.append(conn.execute(sums).fetchone())
    run(empty_database, "repair_usage")

    assert [*SWITCHES] == ["present", "former", "plain"]
    assert counts == [(101, 100), (101, 101), (101, 101)]
    with psycopg.connect(empty_database) as conn:
        differences = conn.execute(query("count_usage_differences").sql).fetchone()
    assert differences == (0,)


def test_each_measured_webhook_changes_its_user(empty_database: str):
    load(empty_database, 100, accounts=10)
    statuses = (
        "SELECT subscription_status, count(*)::integer FROM app.users"
        " WHERE stripe_customer_id IS NOT NULL GROUP BY 1"
    )

    customers = make_customers(empty_database)
    bodies = make_changes(customers, START, passes=2)

    with psycopg.connect(empty_database, autocommit=True) as conn:
        for status, some in (
            ("past_due", bodies[:CUSTOMERS]),
            ("active", bodies[CUSTOMERS:]),
        ):
            apply(conn, some, [sign(body, [TEST_SECRET]) for body in some])
            assert conn.execute(statuses).fetchall() == [(status, CUSTOMERS)]


def test_missing_engines_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(engines, "NODE", tmp_path)
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/node")
    others = "@supabase/stripe-sync-engine, stripe missing: npm install --prefix"

    for name, version in engines.VERSIONS.items():
        folder = tmp_path / "node_modules" / name
        folder.mkdir(parents=True)
        (folder / "package.json").write_text(f'{{"version": "{version}"}}')
        if name == "@stripe/sync-engine":
            assert str(engines.find_obstacle()).startswith(others)
    assert engines.find_obstacle() is None

    monkeypatch.setattr("shutil.which", lambda _: None)
    assert engines.find_obstacle() == "node is not installed"


def test_report_fits_the_page_and_marks_missed_targets():
    found = [
        compare_latency(
            "quota check, hottest user",
            Latency(0.3, 11.123, 12),
            Latency(0.1, 1, 2),
            2,
        ),
        at_least("join and SUM, hottest user", "17.6 ms", "check", 1170.5, 100, {}),
        compare_latency(
            "quota check, hottest user, 1,000,000",
            Latency(220.028, 527.747, 1000),
            Latency(0.1, 1, 2),
            2,
        ),
        at_least("one message", "1,024 /s", "plain 12,205 /s", 0.85, 0.7, {}),
        at_least("one message, 8 writers", "4,768 /s", "plain", 0.7155, 0.72, {}),
    ]

    lines = render(found, 10_000_000, {"server_version": "18.6"}).splitlines()

    assert max(len(line) for line in lines) <= WIDTH
    endings = [line.split()[-4:] for line in lines[2:7]]
    assert endings[0] == ["3.00x", "<=", "2x", "NO"]
    assert endings[1] == ["1,170x", ">=", "100x", "yes"]
    assert endings[4] == ["0.716x", ">=", "0.72x", "NO"]


def test_plot_has_a_line_for_each_design():
    latency = {"p50": 0.1, "p99": 1.0, "worst": 2.0}
    run = {
        "size": 10**6,
        "measures": [
            {
                "name": f"{design}, {user} user{size}",
                "details": {"contestant": latency, "floor": latency},
            }
            for design in ("quota check", "join and SUM")
            for user in ("median", "hottest")
            for size in ("", ", 100,000")
        ],
    }

    root = ElementTree.fromstring(draw(run))

    labels = [element.text for element in root if element.tag.endswith("text")]
    assert {"quota check, hottest", "join and SUM, median", "1,000,000"} <= {*labels}
    assert sum(element.tag.endswith("circle") for element in root) == 2 * len(LINES)
