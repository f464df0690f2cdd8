"""Readers of usage logs."""
