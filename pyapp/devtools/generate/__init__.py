"""Drafts the next migration from the SQL files and proves it."""
