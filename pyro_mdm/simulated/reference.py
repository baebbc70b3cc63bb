"""torchsde's integrators, for comparison."""

from __future__ import annotations

import torchsde
from torch import Tensor

from pyro_mdm.diffusions.base import Cap, Diffusion, require
from pyro_mdm.samplers.base import Grid, Noise, Questions, Sampler, check_size
from pyro_mdm.simulated.sde import ReverseSDE, fold, unfold
from pyro_mdm.support.modules import of_part

__all__ = ["METHODS", "TorchSDE", "increments"]

METHODS = {"euler": "ito", "srk": "ito", "reversible_heun": "stratonovich"}
"""torchsde's methods, and the calculus that each is for; with additive noise both are one."""


class TorchSDE(Sampler):
    """The reversed SDE by torchsde, with one of its steps for each step of the grid.

    Args:
        steps: the number of steps.
        method: the name of the method: ``euler``, :class:`EulerMaruyama`, one score call a step;
            ``srk``, weak order 2, two calls; ``reversible_heun``, weak order 2, two calls (its
            steps are checked before they are made), but for K > 1 its errors grow unless steps are
            very short.
        grid: the grid of times; None: the default one of :class:`Sampler`.

    Raises:
        TypeError: on call, another method than ``euler`` for noise that depends on the state.
        ValueError: another method; see also :class:`Sampler`.

    Source: Li et al., "Scalable Gradients for Stochastic Differential Equations", AISTATS 2020;
    Rößler, "Runge-Kutta Methods for the Strong Approximation of Solutions of SDEs", 2010; Kidger et
    al., "Efficient and Accurate Gradients for Neural SDEs", NeurIPS 2021.

    Example:
        >>> from pyro_mdm import VPSDE, Denoiser, DiffusionModel
        >>> from pyro_mdm.networks import MLP
        >>> model = DiffusionModel(VPSDE(), Denoiser.fit(MLP(2), torch.randn(100, 2)))
        >>> model.sampler = TorchSDE(steps=10)
        >>> model(batch_size=4).shape
        torch.Size([4, 2])
    """

    needs = ()

    def __init__(self, steps: int, method: str = "srk", grid: Grid | None = None) -> None:
        super().__init__(steps, grid)
        if method not in METHODS:
            raise ValueError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
        self.method = method

    def check(self, diffusion: Diffusion, score: object = None) -> None:
        super().check(diffusion, score)
        if self.method != "euler":
            who = f"method {self.method!r}"
            require(diffusion, Cap.PLAIN_NOISE, who=who, fix="use method='euler'")

    def step(self, plan: Tensor, i: int, y: Tensor, ask: Questions, noise: Noise) -> Tensor:
        check_size(y, plan[i], i, len(plan) - 1)
        T, event_shape = ask.diffusion.horizon, y.shape[2:]
        sde = ReverseSDE(ask.diffusion, lambda u, s: ask.score(u, s[0]), event_shape)
        sde.sde_type = METHODS[self.method]
        t = T - plan[i : i + 2]
        h = t[1] - t[0]
        W, U = increments(h, noise, area=self.method == "srk")
        states, extra = torchsde.sdeint(
            sde,
            fold(y),
            t,
            bm=_Step(fold(W), None if U is None else fold(U)),
            method=self.method,
            dt=float(h) * (1 + 1e-9),  # a step must end at the grid's time, not just before it
            extra=True,
            extra_solver_state=ask.past[0] if ask.past else None,
        )
        if extra:
            ask.past.appendleft(extra)
        return unfold(states[-1], event_shape)


def increments(h: Tensor, noise: Noise, area: bool) -> tuple[Tensor, Tensor | None]:
    """Brownian increments W over a step, of variance h, like the noise.

    Args:
        h: the length of the step.
        noise: the function that draws standard normal noise.
        area: whether to draw U = ∫ W du too, of variance h³/3 and covariance h²/2 with W.

    Returns:
        W, and U or None.
    """
    W = h.sqrt() * noise()
    return W, h * (W / 2 + (h / 12).sqrt() * noise()) if area else None


class _Step(torchsde.BaseBrownian):
    """Brownian motion over one step: its increment W and, if asked for, U = ∫ W du, (n·d, K)."""

    def __init__(self, W: Tensor, U: Tensor | None) -> None:
        self._W, self._U = W, U

    def __call__(
        self, ta: object, tb: object = None, return_U: bool = False, return_A: bool = False
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        return (self._W, self._U) if return_U else self._W

    def __repr__(self) -> str:
        return f"Brownian motion over one step of {tuple(self._W.shape)}"

    dtype = of_part("_W")
    device = of_part("_W")
    shape = of_part("_W")

    @property
    def levy_area_approximation(self) -> str:
        return "none" if self._U is None else "space-time"
