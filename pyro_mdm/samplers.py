r"""Integrators of the generative SDE, from the prior at T to y_ε.

In reverse time t = T - s the generative process is

    du = ( g² s_θ(u, s) + ∇·g² - f(u, s) ) dt + G dB_t,    u_0 ~ π,

for a linear diffusion f = A u, A = -(Q + D) Σ_∞^{-1}, g² = 2 D and π = N(0, Σ_π).

Each integrator is one class, called as

    sampler(diffusion, score, shape, generator=None, *, dtype=None, progress=False) -> y_ε

with ``shape = (batch, K, *event_shape)`` and ``score(y, s) -> like y`` for times s (batch,). The
state is held in float64, because late steps are small differences of it; the score is called in
``dtype``, and its answer is taken back to float64. All K×K kernels of the grid are computed in one
batched call before the first step.

A score may have two attributes: ``dtype``, the precision it likes to be called in (PyTorch's
default one otherwise), and ``denoise(y, s) -> x̂``, (batch, *event_shape), which :class:`Ancestral`
uses; without it the denoiser is found from the score by its projection on g².
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pyro_mdm import kernels
from pyro_mdm.checks import check_count, check_instance, describe
from pyro_mdm.diffusions import Diffusion, LinearDiffusion, apply_matrix
from pyro_mdm.posterior import Posterior, posterior
from pyro_mdm.progress import Progress, progress_bar
from pyro_mdm.sde import check_dispersion
from pyro_mdm.settings import Recorded
from pyro_mdm.simulation import LIMIT, SimulationError

if TYPE_CHECKING:
    from pyro_mdm.nonlinear import NonlinearDiffusion

__all__ = [
    "Ancestral",
    "EulerMaruyama",
    "Sampler",
    "Splitting",
    "information_grid",
    "log_snr_grid",
    "simulation_grid",
]

Score = Callable[[Tensor, Tensor], Tensor]


def log_snr_grid(diffusion: LinearDiffusion, steps: int) -> Tensor:
    """(steps + 1,) decreasing times from T to ε, equally spaced in log SNR."""
    return diffusion.log_snr_grid(steps + 1).flip(0)


@torch.no_grad()
def information_grid(diffusion: LinearDiffusion, steps: int) -> Tensor:
    r"""(steps + 1,) decreasing times from T to ε, even in what noise does to all variables.

    The measure is ``-λ(s) + ∫ tr(Σ^{-1} g²) ds``, closed form because the integral is
    ``log det Σ - 2 ∫ tr A``. For K = 1 both parts are -λ and the grid is :func:`log_snr_grid`. For
    K > 1 log SNR can pause while auxiliary variables forget fast: equal steps of λ alone are then
    so long that explicit steps of the score overshoot.
    """
    end = diffusion.clock(diffusion.horizon)
    start = diffusion.clock(diffusion.start_time)
    fraction = torch.linspace(0, 1, 1024).to(end)
    tau = torch.cat([start * (end / start) ** fraction, start + (end - start) * fraction[1:-1]])
    tau = tau.clamp(start, end).unique()
    _, _, factor = diffusion._factor(tau)
    forgotten = factor.log_det - 2 * diffusion.unit_drift.trace() * tau - factor.log_snr
    wanted = forgotten[0] + (forgotten[-1] - forgotten[0]) * torch.linspace(0, 1, steps + 1).to(tau)
    i = torch.searchsorted(forgotten, wanted).clamp(1, len(tau) - 1)
    weight = (wanted - forgotten[i - 1]) / (forgotten[i] - forgotten[i - 1])
    s = diffusion._from_clock(torch.lerp(tau[i - 1], tau[i], weight.clamp(0, 1)))
    s[0], s[-1] = diffusion.start_time, diffusion.horizon
    return s.flip(0)


def simulation_grid(diffusion: NonlinearDiffusion, steps: int) -> Tensor:
    """(steps + 1,) decreasing times from T to ε, even in the diffusion's ``progress``."""
    fraction = torch.linspace(0, 1, steps + 1).to(diffusion.start_time)
    return diffusion.time_at_progress(fraction).flip(0)


class Sampler(Recorded, ABC):
    """An integrator of the generative SDE.

    Args:
        steps: number of steps from T to ε, at least 1.

    Raises:
        ValueError: on call, a shape whose second entry is not the diffusion's K, a score or
            denoiser that answers in another shape or with entries that are not finite.
    """

    def __init__(self, steps: int) -> None:
        check_count("steps", steps, "the number of steps from T to ε")
        self.steps = steps

    @abstractmethod
    def times(self, diffusion: LinearDiffusion) -> Tensor:
        """The decreasing grid of times, (steps + 1,), from T to ε."""

    @abstractmethod
    def plan(self, diffusion: LinearDiffusion, times: Tensor) -> Any:
        """Everything the steps need that does not depend on the state, for all steps at once."""

    @abstractmethod
    def step(
        self, plan: Any, i: int, y: Tensor, ask: _Questions, noise: Callable[[], Tensor]
    ) -> Tensor:
        """The state after step i, like y (batch, K, *event_shape), in float64."""

    def _check(self, diffusion: Diffusion) -> None:
        if not isinstance(diffusion, LinearDiffusion):
            raise TypeError(
                f"{type(self).__name__} needs the closed-form kernels of a LinearDiffusion, and "
                f"{type(diffusion).__name__} has none; use EulerMaruyama({self.steps})"
            )

    @torch.no_grad()
    def __call__(
        self,
        diffusion: Diffusion,
        score: Score,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        *,
        dtype: torch.dtype | None = None,
        progress: bool | Progress = False,
    ) -> Tensor:
        """y_ε of the given shape (batch, K, *event_shape).

        Args:
            diffusion: the noising diffusion that is reversed.
            score: ``score(y, s) -> like y``, see the module's text for optional attributes.
            shape: (batch, K, *event_shape).
            generator: source of randomness, on the diffusion's device.
            dtype: precision of the score's inputs and of the result.
            progress: whether to show the steps (:mod:`pyro_mdm.progress`), or what counts them.
        """
        check_instance("diffusion", diffusion, Diffusion, "the order is (diffusion, score, shape)")
        _check_score(score)
        K = diffusion.num_variables
        if not isinstance(shape, Sequence):
            raise TypeError(
                f"shape is {describe(shape)}, expected (batch, K, *event_shape) of the states; "
                f"e.g. (64, {K}, 2)"
            )
        if len(shape) < 2 or shape[1] != K:
            raise ValueError(
                f"shape is {tuple(shape)}, expected (batch, K, *event_shape) with the K = {K} "
                f"variables of {type(diffusion).__name__}"
            )
        dtype = dtype or getattr(score, "dtype", None) or torch.get_default_dtype()
        device = diffusion.start_time.device
        self._check(diffusion)

        def noise() -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64, device=device)

        ask = _Questions(diffusion, score, dtype)
        fitting: Any = diffusion  # of the kind that this sampler is for
        times = self.times(fitting)
        plan = self.plan(fitting, times)
        y = diffusion.prior.sample(tuple(shape), generator).to(device)
        with self._counting(progress) as bar:
            for i in range(self.steps):
                y = self.step(plan, i, y, ask, noise)
                bar.update()
        return y.to(dtype)

    def _counting(self, progress: bool | Progress) -> AbstractContextManager[Progress]:
        if not isinstance(progress, bool):
            return nullcontext(progress)
        return progress_bar(self.steps, type(self).__name__, "steps", leave=True, shown=progress)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value}" for name, value in self.settings().items())
        return f"{type(self).__name__}({arguments})"


class _Questions:
    """The score and the denoiser, asked in their own precision and answering in float64."""

    def __init__(self, diffusion: Any, score: Score, dtype: torch.dtype) -> None:
        self.diffusion, self._score, self.dtype = diffusion, score, dtype

    def score(self, y: Tensor, s: Tensor) -> Tensor:
        out = self._score(y.to(self.dtype), s.expand(len(y)))
        return self._checked("score", out, y.shape)

    def denoise(self, y: Tensor, s: Tensor) -> Tensor:
        denoise = getattr(self._score, "denoise", None)
        if denoise is None:
            from pyro_mdm.scores import project

            return project(self.diffusion, self.score(y, s), y, s.expand(len(y)))
        out = denoise(y.to(self.dtype), s.expand(len(y)))
        return self._checked("denoiser", out, y.shape[:1] + y.shape[2:])

    def _checked(self, name: str, out: Tensor, shape: torch.Size) -> Tensor:
        if out.shape != shape:
            raise ValueError(f"the {name} has shape {tuple(out.shape)}, expected {tuple(shape)}")
        return out.double()


def _check_score(score: Any) -> None:
    """Raises TypeError for what has a score in it, or is none."""
    from pyro_mdm.model import DiffusionModel
    from pyro_mdm.scores import Score as Parameterization

    if isinstance(score, (DiffusionModel, Parameterization)) or not callable(score):
        raise TypeError(
            f"score is {describe(score)}, expected a function score(y, s); pass model.bound_score"
        )


class _EulerPlan(NamedTuple):
    s: Tensor  # (steps,)
    keep: Tensor  # I - h A
    pull: Tensor  # h g²
    root: Tensor  # √h G


class EulerMaruyama(Sampler):
    """``u' = u + h (g² s_θ + ∇·g² - f) + √h G ξ``, weak order 1. One score call a step.

    For any diffusion: on :func:`information_grid` for a linear one, as is :class:`Splitting`, and
    on :func:`simulation_grid` for any other.
    """

    def _check(self, diffusion: Diffusion) -> None:
        pass

    def times(self, diffusion: Diffusion) -> Tensor:
        if isinstance(diffusion, LinearDiffusion):
            return information_grid(diffusion, self.steps)
        nonlinear: Any = diffusion
        return simulation_grid(nonlinear, self.steps)

    def plan(self, diffusion: Diffusion, times: Tensor) -> _EulerPlan | Tensor:
        if not isinstance(diffusion, LinearDiffusion):
            return times
        s, h = times[:-1], (times[:-1] - times[1:])[:, None, None]
        A = diffusion.drift_matrix(s)
        eye = torch.eye(diffusion.num_variables).to(A)
        root = h.sqrt() * diffusion.dispersion_matrix(s)
        return _EulerPlan(s, eye - h * A, h * diffusion.noise_covariance(s), root)

    def step(
        self,
        plan: _EulerPlan | Tensor,
        i: int,
        y: Tensor,
        ask: _Questions,
        noise: Callable[[], Tensor],
    ) -> Tensor:
        if isinstance(plan, Tensor):
            return self._general(plan, i, y, ask, noise())
        drifted = apply_matrix(plan.keep[i], y) + apply_matrix(
            plan.pull[i], ask.score(y, plan.s[i])
        )
        return drifted + apply_matrix(plan.root[i], noise())

    @staticmethod
    def _general(times: Tensor, i: int, y: Tensor, ask: _Questions, noise: Tensor) -> Tensor:
        diffusion, s, h = ask.diffusion, times[i].expand(len(y)), times[i] - times[i + 1]
        if not bool((y.abs() < LIMIT).all()):
            raise SimulationError(
                f"sampling exploded: a state of {y.abs().max().item():.3g} at s = "
                f"{float(s[0]):.4g}, in step {i + 1} of {len(times) - 1} back from T. Take more "
                "steps (a drift that pulls back strongly pushes apart in reverse until the score "
                "is learned), or train on"
            )
        G = check_dispersion(diffusion, diffusion.dispersion(y, s), y).double()

        def rows(v: Tensor) -> Tensor:
            return v.flatten(2).mT if v.dim() > 2 else v.unsqueeze(1)

        white = G.mT @ rows(ask.score(y, s[0])).unsqueeze(-1)
        moved = (G @ (h * white + h.sqrt() * rows(noise).unsqueeze(-1))).squeeze(-1)
        drift = diffusion.drift(y, s) - diffusion.noise_divergence(y, s)
        return y - h * drift.double() + moved.mT.reshape(y.shape)


class _SplittingPlan(NamedTuple):
    s: Tensor  # (steps,) the middle of each step, by the clock
    half: Tensor  # exp((Q - D) Σ_∞^{-1} τ / 2)
    root: Tensor  # of the noise gained in half a step
    pull: Tensor  # τ 2 D
    stationary_precision: Tensor  # Σ_∞^{-1}


class Splitting(Sampler):
    r"""Symmetric splitting for any (Q, D): half a step of noise, a step of score, half a step.

    The reverse drift is ``(Q - D) Σ_∞^{-1} u + g² (s_θ + Σ_∞^{-1} u)``. Its first part with the
    noise is the diffusion of (-Q, D), whose kernel is exact; the second vanishes where the score is
    that of the stationary law.

    Args:
        steps: number of steps.
        order: weak order: 1 (an Euler step of the score, one score call) or 2 (a midpoint step, two
            calls).

    Source: for CLD, the symmetric splitting CLD sampler of Dockhorn, Vahdat & Kreis, "Score-Based
    Generative Modeling with Critically-Damped Langevin Diffusion", ICLR 2022.
    """

    def __init__(self, steps: int, order: int = 1) -> None:
        super().__init__(steps)
        if order not in (1, 2):
            raise ValueError(f"order is {order}, expected 1 (Euler) or 2 (midpoint)")
        self.order = order

    def times(self, diffusion: LinearDiffusion) -> Tensor:
        return information_grid(diffusion, self.steps)

    def plan(self, diffusion: LinearDiffusion, times: Tensor) -> _SplittingPlan:
        clock = diffusion.clock(times)
        tau = clock[:-1] - clock[1:]
        precision = torch.linalg.inv(diffusion.stationary_covariance)
        A, GG = (diffusion.Q - diffusion.D) @ precision, diffusion.unit_noise
        half, _ = kernels.transition_moments(A, GG, tau / 2)
        root, _, _, growth = kernels.transition_factor(A, GG, tau / 2, diffusion._basis())
        diffusion._check_precision(growth, clock[1:], "the noise of half a step")
        s = diffusion._from_clock((clock[:-1] + clock[1:]) / 2)
        return _SplittingPlan(s, half, root, tau[:, None, None] * GG, precision)

    def step(
        self, plan: _SplittingPlan, i: int, y: Tensor, ask: _Questions, noise: Callable[[], Tensor]
    ) -> Tensor:
        def velocity(u: Tensor) -> Tensor:
            force = ask.score(u, plan.s[i]) + apply_matrix(plan.stationary_precision, u)
            return apply_matrix(plan.pull[i], force)

        y = apply_matrix(plan.half[i], y) + apply_matrix(plan.root[i], noise())
        y = y + velocity(y if self.order == 1 else y + velocity(y) / 2)
        return apply_matrix(plan.half[i], y) + apply_matrix(plan.root[i], noise())


class _AncestralPlan(NamedTuple):
    s: Tensor  # (steps,)
    kernel: Posterior


class Ancestral(Sampler):
    """The exact Gaussian posterior ``q(y_{s'} | y_s, x = x̂(y_s, s))``, on :func:`log_snr_grid`.

    The discrete-time model of the grid: with it the chain's bound is the grid's own. One call of
    the denoiser a step. Source: Ho, Jain & Abbeel, "Denoising Diffusion Probabilistic Models",
    NeurIPS 2020, equations 6 and 7, here for any K.
    """

    def times(self, diffusion: LinearDiffusion) -> Tensor:
        return log_snr_grid(diffusion, self.steps)

    def plan(self, diffusion: LinearDiffusion, times: Tensor) -> _AncestralPlan:
        return _AncestralPlan(times[:-1], posterior(diffusion, times[:-1], times[1:]))

    def step(
        self, plan: _AncestralPlan, i: int, y: Tensor, ask: _Questions, noise: Callable[[], Tensor]
    ) -> Tensor:
        x_hat = ask.denoise(y, plan.s[i])
        kernel = plan.kernel
        b = kernel.mean_coefficient[i].reshape(-1, *(1,) * (x_hat.dim() - 1))
        mean = apply_matrix(kernel.gain[i], y) + b * x_hat.unsqueeze(1)
        return mean + apply_matrix(kernel.scale_tril[i], noise())
