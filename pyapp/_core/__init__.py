"""Internals: loader and runner of queries, validation, connections, configuration."""
