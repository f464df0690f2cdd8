"""Measurements of what is promised, as ratios within one run."""
