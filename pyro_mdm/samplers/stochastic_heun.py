"""The stochastic Heun method: two drifts a step, for noise that does not depend on the state."""

from __future__ import annotations

from torch import Tensor

from pyro_mdm.diffusions.base import Cap, Diffusion
from pyro_mdm.diffusions.matrices import apply_matrix, apply_to_rows, as_rows
from pyro_mdm.diffusions.sde import noise_root
from pyro_mdm.samplers.base import Noise, Questions, Sampler, check_size

__all__ = ["StochasticHeun"]


class StochasticHeun(Sampler):
    r"""The stochastic Heun method: an Euler–Maruyama step, then the mean of both ends' drifts.

        u* = u + h F(u, s) + √h G(s) ξ,    u' = u + h/2 ( F(u, s) + F(u*, s') ) + √h (G + G')/2 ξ

    with the reverse drift F = g² s_θ - f, linear or not, and the same noise in both. Weak order 2,
    two score calls a step. Noise must not depend on the state: there the method converges to the
    Stratonovich process instead.

    Args:
        steps: number of steps.
        grid: times at which steps end, see :class:`Sampler`.

    Source: Kloeden & Platen, "Numerical Solution of Stochastic Differential Equations", 1992, for
    additive noise.
    """

    needs = (Cap.PLAIN_NOISE,)

    def step(self, plan: Tensor, i: int, y: Tensor, ask: Questions, noise: Noise) -> Tensor:
        s, later = plan[i], plan[i + 1]
        h = s - later
        check_size(y, s, i, len(plan) - 1)
        xi = h.sqrt() * noise()
        kick, kick_later = (self._kick(ask.diffusion, y, t, xi) for t in (s, later))
        here = ask.velocity(y, s, noise=1.0)
        there = ask.velocity(y - h * here + kick, later, noise=1.0)
        return y - h / 2 * (here + there) + (kick + kick_later) / 2

    @staticmethod
    def _kick(diffusion: Diffusion, y: Tensor, s: Tensor, xi: Tensor) -> Tensor:
        G = noise_root(diffusion, y, s.expand(len(y)))  # (n, d or 1, K, K)
        if G.shape[1] == 1:
            return apply_matrix(G[:, 0], xi)
        return apply_to_rows(G, as_rows(xi)).mT.reshape(xi.shape)
