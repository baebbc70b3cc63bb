"""A learned diffusion towards a given noise, in which x and v are correlated.

    python -m inference.train --model toy --guide inference.guides.target_noise:TargetNoise

N(0, Σ_∞) is the stationary law and the prior for any Q and D: Σ_∞ is chosen, and the way to it is
learned. Here it is not diagonal. A choice of Σ_∞ alone needs no code:

    python -m inference.train --model toy --stationary_variance '[[1, 0.3], [0.3, 0.25]]'
"""

from __future__ import annotations

from typing import Any

from pyro_mdm import LearnedDiffusion


class TargetNoise(LearnedDiffusion):
    r"""A learned diffusion of two variables towards N(0, Σ_∞) with

        Σ_∞ = [[1, ρ σ], [ρ σ, σ²]].

    Args:
        correlation: ρ, the stationary correlation of x and v, between -1 and 1.
        deviation: σ, the stationary standard deviation of v.
        options: options of :class:`~pyro_mdm.LearnedDiffusion` (rank, max_log_snr, …).
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
