"""Samples, completions and restorations, and their pictures and tables."""
