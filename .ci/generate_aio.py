"""Writes pyapp/aio/<topic>.py: the functions of pyapp/<topic>.py for asyncio.

`make aio` writes the files; with --check, as in `make lint`, it fails if one is stale.
A generated module holds the functions that use a connection. It imports row classes,
constants and other functions from the sync module.
"""

import argparse
import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOPICS = [
    "fingerprints",
    "messages",
    "plans",
    "quota",
    "referrals",
    "sessions",
    "stats",
    "users",
]
SOURCES = {
    **{topic: f"pyapp/{topic}.py" for topic in TOPICS},
    "connection": "pyapp/_core/connection.py",
}
# The functions of a connection that take none.
OPENING = {"connect", "pool"}
AWAITED = "fetch_one|fetch_optional|fetch_all|execute|copy_rows|configure_session"
REWRITES = [
    (r"^def ", "async def "),
    (r"\b(Connection|Pool)\b", r"Async\1"),
    (r"pyapp\._core\.run\b", "pyapp._core.run_async"),
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
    tree = ast.parse(text)
    lines = text.splitlines(keepends=True)
    functions = [node for node in tree.body if uses_connection(node)]
    used = {
        name.id
        for node in functions
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
        elif node not in functions:
            defined += [name for name in defined_names(node) if name in used]
    module = source.removesuffix(".py").replace("/", ".")
    parts = [f'"""{ast.get_docstring(tree)}"""', *imports]
    if defined:
        parts.append(f"from {module} import {', '.join(defined)}")
    for node in functions:
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        parts.append("".join(lines[first - 1 : node.end_lineno]))
    code = "\n\n".join(parts)
    for pattern, replacement in REWRITES:
        code = re.sub(pattern, replacement, code, flags=re.MULTILINE)
    header = f"# Generated from {source} by .ci/generate_aio.py; do not edit.\n"
    return formatted(header + code)


def uses_connection(node: ast.stmt) -> bool:
    """Return whether *node* is a function that takes or opens a connection."""
    if not isinstance(node, ast.FunctionDef):
        return False
    first = [argument.arg for argument in node.args.args[:1]]
    return first == ["conn"] or node.name in OPENING


def defined_names(node: ast.stmt) -> list[str]:
    """Return the names that a statement of a module defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


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
    for topic, source in SOURCES.items():
        path = ROOT / "pyapp" / "aio" / f"{topic}.py"
        text = generate(source)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.relative_to(ROOT).as_posix())
            if not is_check:
                path.write_text(text, encoding="utf-8")
    for name in stale:
        print(f"{name} is stale; run: make aio" if is_check else f"Wrote {name}")
    return int(is_check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
