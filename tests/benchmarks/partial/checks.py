"""The references of the tasks against their programs, by ranks.

    python -m tests.benchmarks.partial.checks

A vector is drawn from the program, some of its numbers are given, and the others are ranked among
reference draws given these. If the references are exact, ranks are uniform. For each task and kind
of mask it prints the number of vectors and the least p-value of a χ² test of the ranks of a number
in ten cells, times the number of tests; the last column is the largest difference of the log
density and that of the program's trace, of 100 draws.
"""

from __future__ import annotations

import argparse

import torch
from pyro import poutine
from scipy import stats
from torch import Tensor

from tests.benchmarks.partial.references import reference
from tests.benchmarks.partial.tasks import KINDS, TASKS, Task, mask_of

DRAWS, CELLS = 99, 10


def ranks_of(name: str, kind: str, repeats: int, seed: int = 0) -> Tensor:
    """Ranks of true numbers among reference draws, (repeats, d), -1 where a number is given."""
    task = TASKS[name]
    generator = torch.Generator().manual_seed(seed)
    truth, ranks = task.draws(repeats, seed=5_000_000 + seed), []
    for k, z in enumerate(truth.double()):
        given = mask_of(task, kind, generator)
        drawn = reference(name, task, given, z, DRAWS, seed=6_000_000 + 1_000 * seed + k)
        ranks.append(torch.where(given, -1, (drawn < z).sum(0)))
    return torch.stack(ranks)


def least_p_value(ranks: Tensor) -> float:
    """The least p-value of the numbers with enough ranks, times how many these are."""
    columns = [column[column >= 0] for column in ranks.T]
    columns = [column for column in columns if len(column) >= 5 * CELLS]
    counts = [torch.bincount(column * CELLS // (DRAWS + 1), minlength=CELLS) for column in columns]
    p_values = [float(stats.chisquare(count.numpy()).pvalue) for count in counts]
    return min([1.0, *(p * len(p_values) for p in p_values)])


def density_difference(task: Task, n: int = 100) -> float:
    """The largest difference of log p(z) and the log probability of the program's trace."""
    worst = 0.0
    for z in task.draws(n, seed=7_000_000):
        program = poutine.condition(task.simulator.program, task.by_site(z))
        traced = float(poutine.trace(program).get_trace().log_prob_sum())
        worst = max(worst, abs(float(task.log_density(z.double())) - traced) / (1 + abs(traced)))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--repeats", type=int, default=300)
    options = parser.parse_args()
    print("task,kind,vectors,p_value,density")
    for name in options.tasks:
        # the program of two moons has no density of its data, which its ranks alone check
        density = "" if name == "two_moons" else f"{density_difference(TASKS[name]):.1e}"
        for kind in KINDS:
            p = least_p_value(ranks_of(name, kind, options.repeats))
            print(name, kind, options.repeats, f"{p:.2g}", density, sep=",", flush=True)


if __name__ == "__main__":
    main()
