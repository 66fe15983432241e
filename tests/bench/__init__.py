"""Measurements on real machines, as ratios within one run."""
