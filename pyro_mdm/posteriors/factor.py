"""The calibration of a Bayes factor of two simulators, on simulations of either.

A log Bayes factor ℓ of learned likelihoods is off by N (KL_1 − KL_2) for N data, of the misfits of
both. So data are simulated by either, and the log odds of the first are fitted by a line, a + b ℓ,
which is ℓ if the factor is right (logistic regression: Platt, "Probabilistic outputs for support
vector machines", 1999).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_mdm.posteriors.calibration import new_simulations
from pyro_mdm.posteriors.reading import Draws, Program, sites_of
from pyro_mdm.support.checks import Several, checked_arguments
from pyro_mdm.support.measured import Measured
from pyro_mdm.support.progress import progress_bar

__all__ = ["FactorCalibration", "calibrate_factor"]

PRIOR = 2.0, 1.0
"""The standard deviations of a and b about 0 and 1, where simulations do not determine them."""


class FactorCalibration(NamedTuple):
    """Log Bayes factors of simulations of two simulators, nats."""

    first: Tensor  # (n,), of simulations of the first
    second: Tensor  # (n,), of simulations of the second

    def calibrated(self, log_factor: float) -> Measured:
        """The log odds of the first simulator at a log Bayes factor, nats, with their error.

        Args:
            log_factor: the log Bayes factor ℓ of the data.
        """
        values = torch.cat([self.first, self.second]).double()
        inputs = torch.stack([torch.ones_like(values), values], 1)
        is_first = (torch.arange(len(values)) < len(self.first)).double()
        center = torch.tensor([0.0, 1.0], dtype=torch.float64)
        precision = torch.tensor(PRIOR, dtype=torch.float64).pow(-2).diag()
        line = torch.zeros(2, dtype=torch.float64)  # from where Newton steps do not diverge
        for _ in range(50):  # Newton steps
            p = (inputs @ line).sigmoid()
            hessian = (inputs.mT * (p * (1 - p))) @ inputs + precision
            slope = inputs.mT @ (is_first - p) - precision @ (line - center)
            line = line + torch.linalg.solve(hessian, slope)
        at = torch.tensor([1.0, log_factor], dtype=torch.float64)
        return Measured(float(at @ line), math.sqrt(float(at @ torch.linalg.solve(hessian, at))))

    def __str__(self) -> str:
        right = float((self.first > 0).double().mean()), float((self.second < 0).double().mean())
        return (
            f"log Bayes factors of {len(self.first)} simulations of each: "
            f"{Measured.from_values(self.first)} by the first, above 0 in {right[0]:.0%}, and "
            f"{Measured.from_values(self.second)} by the second, below 0 in {right[1]:.0%}"
        )


@checked_arguments
def calibrate_factor(
    log_factor: Callable[[Draws], float],
    first: Program,
    second: Program,
    observed: Sequence[str],
    simulations: Several = 50,
    *,
    vectorized: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> FactorCalibration:
    """The log Bayes factors of new simulations of two simulators of the same data.

    Args:
        log_factor: the function that takes data by site, (*shape), and returns the log evidence of
            the first simulator − that of the second, nats.
        first, second: the simulators, without arguments, such as hierarchical programs whose data
            are drawn.
        observed: the names of the data's sites.
        simulations: the number of simulations of each, two or more.
        vectorized: as for :func:`simulate`.
        seed: the seed of the simulations.
        progress: whether to show a progress bar.

    Raises:
        ValueError: as for :func:`simulate`; a simulator without these sites.
    """
    factors = list[Tensor]()
    with progress_bar(2 * simulations, "factors", "simulations", shown=progress) as bar:
        for place, program in enumerate((first, second)):
            sites_of(program, observed)  # which refuses others
            drawn = new_simulations(program, simulations, vectorized, seed + place, False)
            values = torch.empty(simulations, dtype=torch.float64)
            for row in range(simulations):
                values[row] = log_factor({name: drawn[name][row] for name in observed})
                bar.update()
            factors.append(values)
    return FactorCalibration(*factors)
