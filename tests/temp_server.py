"""The temporary server of `pyapp.devtools.server.temporary`, for tests and checks."""

from pyapp.devtools.server.temporary import (
    TEMP_SETTINGS,
    free_port,
    open_folder,
    temp_server,
)

__all__ = ["TEMP_SETTINGS", "free_port", "open_folder", "temp_server"]
