"""Generates pyapp/aio from the sync modules.

`make aio` writes the files; with --check, as in `make lint`, it fails if one is stale.
A generated module has the functions that use a connection, and the classes of
connections and pools. It imports everything else from the sync module.
"""

import argparse
import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    "pyapp/entitlements.py",
    "pyapp/fingerprints.py",
    "pyapp/messages.py",
    "pyapp/plans.py",
    "pyapp/prices.py",
    "pyapp/quota.py",
    "pyapp/referrals.py",
    "pyapp/sessions.py",
    "pyapp/stats.py",
    "pyapp/usage.py",
    "pyapp/users.py",
    "pyapp/_core/connection.py",
    "pyapp/_core/connection_types.py",
)
# Functions and classes that are generated although they take no connection.
OPENING = {"connect", "pool", "Connection", "Pool"}
# Methods that psycopg's pool for asyncio does not have.
SYNC_ONLY = {"__del__"}
METHODS = (
    "wait|cancel_safe|commit|rollback|transaction|__aexit__"
    "|open|close|getconn|putconn|check|drain|resize"
)
AWAITED = (
    "fetch_one|fetch_optional|fetch_all|stream_rows|execute|copy_rows|configure_session"
)
REWRITES = [
    (r"^def ", "async def "),
    (r"\b(Connection|Pool|ConnectionPool|Transaction)\b", r"Async\1"),
    (r"\bIterator\b", "AsyncIterator"),
    (r"\bcontextmanager\b", "asynccontextmanager"),
    (r"__exit__", "__aexit__"),
    (rf"^    def ({METHODS})\(", r"    async def \1("),
    (rf"(?<!with )(super\(\)|self)\.({METHODS})\(", r"await \1.\2("),
    (r"\bwith super\(\)", "async with super()"),
    (r"pyapp\._core\.run\b", "pyapp._core.run_async"),
    (
        r"from pyapp\._core\.connection_types import Async",
        "from pyapp.aio.connection_types import Async",
    ),
    (r"\bwith connect\(", "async with await connect("),
    (r"\breturn connect\(", "return await connect("),
    (r"\bwith atomic\(", "async with atomic("),
    (rf"(?<![\w.])(?<!def )({AWAITED})\(", r"await \1("),
    (r"AsyncConnection\.connect\(", "await AsyncConnection.connect("),
    (r"\b(conn|connections)\.(open|close|execute|set_autocommit)\(", r"await \1.\2("),
    (r"in a `with`", "in an `async with`"),
]


def generate(source: str) -> str:
    """Return the module for asyncio of the sync module at *source*."""
    text = (ROOT / source).read_text(encoding="utf-8")
    tree = ast.parse(text, filename=source)
    lines = text.splitlines(keepends=True)
    generated = [node for node in tree.body if uses_connection(node)]
    used = {
        name.id
        for node in generated
        for name in ast.walk(node)
        if isinstance(name, ast.Name)
    }
    imports = []
    defined = []
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [a for a in node.names if (a.asname or a.name) in used]
            if node.names:
                imports.append(ast.unparse(node))
        elif node not in generated:
            defined += [name for name in defined_names(node) if name in used]
    module = source.removesuffix(".py").replace("/", ".")
    parts = ["".join(lines[: tree.body[0].end_lineno]), *imports]
    if defined:
        parts.append(f"from {module} import {', '.join(defined)}")
    for node in generated:
        parts.append("".join(source_lines(node, lines)))
    code = "\n\n".join(parts)
    for pattern, replacement in REWRITES:
        code = re.sub(pattern, replacement, code, flags=re.MULTILINE)
    header = f"# Generated from {source} by .ci/generate_aio.py; do not edit.\n"
    return formatted(header + code)


def uses_connection(node: ast.stmt) -> bool:
    """Return whether *node* takes or opens a connection, or is a connection's class."""
    if isinstance(node, ast.FunctionDef):
        first = [argument.arg for argument in node.args.args[:1]]
        return first == ["conn"] or node.name in OPENING
    return isinstance(node, ast.ClassDef) and node.name in OPENING


def source_lines(node: ast.stmt, lines: list[str]) -> list[str]:
    """Return the lines of *node*, without the methods that only the sync class has."""
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
    last = node.end_lineno
    for part in getattr(node, "body", []):
        if getattr(part, "name", None) in SYNC_ONLY:
            return lines[first - 1 : part.lineno - 1] + lines[part.end_lineno : last]
    return lines[first - 1 : last]


def defined_names(node: ast.stmt) -> list[str]:
    """Return the names that a statement of a module defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    return [target.id for target in targets if isinstance(target, ast.Name)]


def formatted(code: str) -> str:
    """Return *code* as ruff formats it."""
    ruff = [sys.executable, "-m", "ruff"]
    name = ["--stdin-filename", "pyapp/aio/generated.py", "-"]
    for command in (
        [*ruff, "check", "--quiet", "--select", "I", "--fix", *name],
        [*ruff, "format", "--quiet", *name],
    ):
        run = subprocess.run(
            command, input=code, capture_output=True, text=True, check=True, cwd=ROOT
        )
        code = run.stdout
    return code


def main() -> int:
    """Write the files, or report the stale ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    is_check = parser.parse_args().check
    stale = []
    for source in SOURCES:
        path = ROOT / "pyapp" / "aio" / Path(source).name
        try:
            text = generate(source)
        except SyntaxError as exc:
            print(f"{exc.filename}:{exc.lineno}: {exc.msg}", file=sys.stderr)
            return 1
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.relative_to(ROOT).as_posix())
            if not is_check:
                path.write_text(text, encoding="utf-8")
    for name in stale:
        print(f"{name} is stale; run: make aio" if is_check else f"Wrote {name}")
    return int(is_check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
