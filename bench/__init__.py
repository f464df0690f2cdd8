"""Measurements of DESIGN's promises, as ratios within one run."""
