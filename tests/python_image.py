"""An image with this machine's Python, in place of the one of deploy/Dockerfile.

A registry is not always within reach. Like the official image it has `python`, a shell,
useradd and groupadd. pip finds the packages of a folder in it, and no index.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/shadow": "root:*:20000::::::\n",
    "etc/gshadow": "root:*::\n",
    "etc/login.defs": "",
    "etc/pip.conf": "[global]\nno-index = true\nfind-links = /wheels\n",
}
TOOLS = ("sh", "useradd", "groupadd")
ALWAYS_THERE = (
    "dl",
    "gcc_s",
    "m",
    "nss_dns",
    "nss_files",
    "pthread",
    "resolv",
    "rt",
    "stdc++",
    "util",
)
# Of the standard library, what no package needs.
LEFT_OUT = {"test", "tests", "idlelib", "tkinter", "site-packages", "__pycache__"}
DOCKERFILE = """\
FROM scratch
ADD root.tar /
ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
CMD ["python"]
"""


def build_python_image(name: str, wheels: Path, folder: Path) -> None:
    """Build the image *name* in *folder*; pip finds the packages of *wheels* in it."""
    with tarfile.open(folder / "root.tar", "w", dereference=True) as archive:
        for name_inside, text in FILES.items():
            file = folder / "file"
            file.write_text(text)
            archive.add(file, name_inside)
        (folder / "tmp").mkdir()
        (folder / "tmp").chmod(0o1777)
        archive.add(folder / "tmp", "tmp")
        archive.add(wheels, "wheels")
        for path in sorted(set(_python()) | set(_tools())):
            archive.add(path, str(path).lstrip("/"), recursive=False)
        link = tarfile.TarInfo("usr/local/bin/python")
        link.type, link.linkname = tarfile.SYMTYPE, str(_executable())
        archive.addfile(link)
    (folder / "Dockerfile").write_text(DOCKERFILE)
    subprocess.run(
        ["docker", "build", "--quiet", "--tag", name, str(folder)],
        check=True,
        capture_output=True,
    )


def _executable() -> Path:
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def _python() -> Iterator[Path]:
    paths = sysconfig.get_paths(vars={"base": sys.base_prefix})
    library = Path(paths["stdlib"])
    files = [_executable()]
    for folder, names, found in os.walk(library):
        names[:] = [name for name in names if name not in LEFT_OUT]
        files += [Path(folder, name) for name in found]
    # Debian keeps the wheels of ensurepip apart from the library.
    files += Path("/usr/share/python-wheels").glob("*.whl")
    yield from files
    libraries = set(_libraries(path for path in files if path.suffix == ".so"))
    libraries |= set(_libraries(files[:1]))
    yield from libraries
    # Wheels load these at run time, and every distribution has them.
    (libc,) = (path for path in libraries if path.name == "libc.so.6")
    for name in ALWAYS_THERE:
        yield from libc.parent.glob(f"lib{name}.so.*")


def _tools() -> Iterator[Path]:
    found = [shutil.which(name, path="/bin:/usr/sbin") for name in TOOLS]
    programs = [Path(path) for path in found if path]
    yield from programs
    yield from _libraries(programs)


def _libraries(files: Iterable[Path]) -> Iterator[Path]:
    """Yield the shared libraries that *files* load, each under its own name."""
    run = subprocess.run(
        ["ldd", *map(str, files)], capture_output=True, text=True, check=False
    )
    for line in run.stdout.splitlines():
        for word in line.split():
            if word.startswith("/") and not word.endswith(":"):
                yield Path(word)
