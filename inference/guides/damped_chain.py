"""A chain of three variables, damped at both auxiliary ones."""

from __future__ import annotations

from typing import Any

from pyro_mdm import LinearDiffusion


class DampedChain(LinearDiffusion):
    r"""The chain x ↔ v_1 ↔ v_2, with friction and noise on v_1 and v_2.

        dx   = β v_1 ds
        dv_1 = β (-x - γ_1 v_1 + c v_2) ds + sqrt(2 γ_1 β) dB_1
        dv_2 = β (-c v_1 - γ_2 v_2) ds     + sqrt(2 γ_2 β) dB_2

    It lies between CLD, with c = 0 and without v_2, and ALDA, which damps the last variable alone:
    the chain smooths the noise that reaches x, and the friction γ_1 damps its oscillations.

    Args:
        coupling: c, the strength of v_1 ↔ v_2; nonzero where damping_1 is 0.
        damping_1, damping_2: γ_1 and γ_2 ≥ 0.
        options: options of :class:`~pyro_mdm.LinearDiffusion` (clock, max_log_snr, …).
    """

    def __init__(
        self, coupling: float = 1.0, damping_1: float = 1.0, damping_2: float = 2.0, **options: Any
    ) -> None:
        Q = [[0.0, -1.0, 0.0], [1.0, 0.0, -coupling], [0.0, coupling, 0.0]]
        D = [[0.0, 0.0, 0.0], [0.0, damping_1, 0.0], [0.0, 0.0, damping_2]]
        super().__init__(Q, D, **options)
