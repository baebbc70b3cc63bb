"""Posteriors of simulators: what they are of, how good they are, and what they say of data."""
