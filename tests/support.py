"""What several test files share."""

from dataclasses import dataclass
from urllib.parse import quote


@dataclass(frozen=True)
class Server:
    """Where the tests' PostgreSQL answers; pytest-postgresql reads these names."""

    host: str
    port: int
    user: str
    password: str
    options: str = ""
    maintenance_dbname: str = "postgres"
    template_dbname: None = None

    def url(self, database: str) -> str:
        """Return the URL of one of its databases."""
        user, password = quote(self.user, safe=""), quote(self.password, safe="")
        return f"postgresql://{user}:{password}@{self.host}:{self.port}/{database}"
