"""A PostgreSQL schema for metered AI usage, with a thin Python layer over it."""

__version__ = "0.1.0"
