"""A learned diffusion to a noise that is given: x and v end correlated.

    python -m inference.train --model toy --guide inference.guides.target_noise:TargetNoise

Whatever Q and D become, N(0, Σ_∞) stays the law at rest, and the prior that generation starts from:
Σ_∞ is chosen, the way there is learned. Here it is not diagonal. For Σ_∞ alone no code is needed:

    python -m inference.train --model toy --stationary_variance '[[1, 0.3], [0.3, 0.25]]'
"""

from __future__ import annotations

from typing import Any

from pyro_mdm import LearnedDiffusion


class TargetNoise(LearnedDiffusion):
    r"""Q and D learned, K = 2, towards N(0, Σ_∞) with

        Σ_∞ = [[1, ρ σ], [ρ σ, σ²]].

    Args:
        correlation: ρ of x and v at rest, between -1 and 1.
        deviation: σ, standard deviation of v at rest.
        options: keyword arguments of :class:`~pyro_mdm.LearnedDiffusion` (rank, max_log_snr, …).
    """

    def __init__(self, correlation: float = 0.6, deviation: float = 0.5, **options: Any) -> None:
        if not -1 < correlation < 1:
            raise ValueError(
                f"correlation is {correlation}, expected one between -1 and 1, where Σ_∞ has an "
                "inverse"
            )
        c = correlation * deviation
        options["stationary_variance"] = [[1.0, c], [c, deviation**2]]
        super().__init__(2, **options)
