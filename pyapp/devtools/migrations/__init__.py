"""Applies and rolls back the migrations."""
