"""Files that commands write in one step."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def replaced(path: Path, *, mode: int) -> Iterator[TextIO]:
    """Yield a file that becomes *path*, with *mode*, when the block ends.

    No reader sees a part of it. After an error, *path* is as it was before.
    """
    # The name must not end with .prom, which node_exporter would read.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".pyapp-")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
