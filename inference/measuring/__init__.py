"""Bounds, calibration and comparisons of runs: numbers, tables and figures."""
