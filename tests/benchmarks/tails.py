"""The share of heavy tails of importance weights that are flagged, by their number; by hand.

    python -m tests.benchmarks.tails

Weights are draws of generalized Pareto laws of tail index k, so that what k̂ should find is known. A
datum is flagged where k̂ is above the limit for so many weights, and beside it above 0.7 for all.
"""

from __future__ import annotations

import argparse
import math

import torch

from inference.folders.output import aligned
from pyro_mdm.evaluation.importance import weighted

__all__ = ["flagged"]


def flagged(S: int, k: float, n: int, seed: int = 0) -> tuple[float, float, float]:
    """The limit for S weights, and the parts of n data above it and above 0.7."""
    uniform = torch.rand(S, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = weighted("", ((uniform**-k - 1) / k).log(), 1, 1)
    above = [float((found.pareto_k > at).double().mean()) for at in (found.pareto_limit, 0.7)]
    return found.pareto_limit, above[0], above[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=2000, help="data of each cell")
    n = parser.parse_args().n
    tails = (0.3, 0.5, 0.7, 0.9, 1.1)
    rows = [("weights", "limit", *(f"k = {k}" for k in tails))]
    for S in (64, 256, 1024, 4096):
        cells = [flagged(S, k, n) for k in tails]
        rows.append((str(S), f"{cells[0][0]:.2f}", *(f"{a:.2f} ({b:.2f})" for _, a, b in cells)))
    print(aligned(rows))
    print(f"standard error at most {0.5 / math.sqrt(n):.3f}; in brackets with a limit of 0.7")


if __name__ == "__main__":
    main()
