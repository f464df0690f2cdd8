"""Compares, checks and documents a database."""
