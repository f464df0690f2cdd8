"""Prices from genai-prices, as pyapp.pricing applies them to a call."""
