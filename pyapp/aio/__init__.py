"""Every query function on a `psycopg.AsyncConnection`.

The same names, parameters, rows and errors as in `pyapp`, from the same SQL.
"""

from pyapp.aio import messages, quota, users

__all__ = ["messages", "quota", "users"]
