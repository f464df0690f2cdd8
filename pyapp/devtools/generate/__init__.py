"""Drafts a migration and proves it."""
