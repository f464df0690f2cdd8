"""A lock that one session at a time can hold, and which session holds it."""

from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class AdvisoryLock:
    """Whether this session has taken the lock; if not, who holds it.

    The holder's columns are None where it has ended since, or where the session's role
    may not see them: `holder_since`, when it connected, is seen by its own role and by
    members of pg_read_all_stats.
    """

    is_held: bool
    holder_pid: int | None
    holder_role: str | None
    holder_application: str | None
    holder_since: datetime | None

    def describe_holder(self) -> str:
        """Return what is known of the holder, and how to end it, as parts of a line."""
        if self.holder_pid is None:
            return "wait for it"
        parts = [f"process {self.holder_pid}"]
        if self.holder_role:
            parts.append(f"role {self.holder_role}")
        if self.holder_application:
            # Any client chooses it.
            application = ascii(self.holder_application)[1:-1]
            parts.append(f"application {application}")
        if self.holder_since is not None:
            since = self.holder_since.astimezone(UTC).isoformat(" ", "seconds")
            parts.append(f"connected since {since}")
        return (
            f"{', '.join(parts)}; wait for it, or end that session:"
            f" SELECT pg_terminate_backend({self.holder_pid})"
        )
