"""Walks through the code are short."""

from __future__ import annotations

from tests.benchmarks.moves import moves, walks


def test_walks_through_the_code_are_short() -> None:
    """Of the second time, with little room: people who look for a mistake go the same ways."""
    most = {
        "--guide learned to a kernel": 340,
        "data to a loss": 125,
        "a sample given a measurement": 3500,
    }
    for name, walk in walks().items():
        if name in most:
            walk()
            counts = moves(walk)
            assert most[name] / 2 < counts.total() <= most[name], counts.most_common(10)
            assert all(start != end for (start, _), (end, _) in counts)
