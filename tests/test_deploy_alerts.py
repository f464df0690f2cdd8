"""The alert rules are the table of docs/operations.md, and use metrics that exist."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from pyapp._core.connection import pool
from pyapp.stripe_sync.metrics import RESULTS, ServerMetrics
from pyapp.stripe_sync.server import ConnectionCounts
from tests.deploy_files import DEPLOY
from tests.support import run_cli

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "operations.md"
RULES: list[dict[str, Any]] = yaml.safe_load(
    (DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
)["groups"][0]["rules"]
FIGURES = ROOT / "tests" / "data" / "alerts.yml"
METRIC = re.compile(r"\bpyapp_\w+")
# What a selector asks for, such as kind="reconcile".
LABEL = re.compile(r'(\w+)=~?"([^"]+)"')


@pytest.fixture(scope="module")
def exposed(module_database: str) -> dict[str, set[str]]:
    """Return the label pairs of each metric that a running pyapp exposes."""
    with pool(module_database) as connections:
        served = ServerMetrics(connections, ConnectionCounts()).registry
        families = [*served.collect()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", module_database)
        text = run_cli("stats", "--prometheus")[1]
    families += text_string_to_metric_families(text)
    found: dict[str, set[str]] = {}
    for family in families:
        for sample in family.samples:
            pairs = {f"{name}={value}" for name, value in sample.labels.items()}
            found.setdefault(sample.name, set()).update(pairs)
    return found


def test_each_row_of_the_table_has_a_rule_and_each_rule_a_row():
    text = PAGE.read_text(encoding="utf-8").partition("### What to alert on")[2]
    rows = re.findall(r"^\| `(Pyapp\w+)` \|", text, re.MULTILINE)

    assert rows == [rule["alert"] for rule in RULES]
    assert len(rows) > 10


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_rule_uses_metrics_and_labels_that_exist(
    exposed: dict[str, set[str]], rule: dict[str, Any]
):
    names = METRIC.findall(rule["expr"])

    assert names
    assert set(names) <= exposed.keys()
    pairs = set().union(*(exposed[name] for name in names))
    for label, values in LABEL.findall(rule["expr"]):
        for value in values.split("|"):
            assert f"{label}={value}" in pairs
    assert rule["annotations"].keys() == {"summary", "action"}
    assert rule["labels"]["severity"] in {"warning", "critical"}


def test_figures_of_the_rules_are_metrics(exposed: dict[str, set[str]]):
    series = yaml.safe_load(FIGURES.read_text(encoding="utf-8"))
    used = {name for rule in RULES for name in METRIC.findall(rule["expr"])}

    assert {METRIC.match(one)[0] for one in series} == used  # type: ignore[index]


def test_page_names_every_metric(exposed: dict[str, set[str]]):
    text = PAGE.read_text(encoding="utf-8").partition("### For Prometheus")[2]
    documented = set(re.findall(r"`(?:pyapp_)?(\w+)(?:{[\w,]+})?`", text))
    suffixes = ("_bucket", "_count", "_sum", "_created")

    for name in exposed:
        if name.startswith("pyapp_") and not name.endswith(suffixes):
            assert name.removeprefix("pyapp_") in documented, name
    for result in RESULTS:
        assert result in text
