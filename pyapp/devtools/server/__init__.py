"""The local PostgreSQL server: Docker or embedded."""
