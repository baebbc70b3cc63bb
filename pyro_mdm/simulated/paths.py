r"""The distribution of a simulated noising path, and its divergence from a generative one.

The counterpart of :class:`~pyro_mdm.paths.NoisingPath`, which has a closed form: the distribution
is exact at the start time ε, and simulated by torchsde beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import pyro_mdm.randomness as randomness
from pyro_mdm.diffusions.matrices import apply_matrix, outer
from pyro_mdm.paths.base import (
    GenerativeLaw,
    NoisingLaw,
    PathKL,
    noising_law,
    path_divergence,
    shared_diffusion,
    times_text,
)
from pyro_mdm.paths.density import density_bound, gaussian_log_prob
from pyro_mdm.simulated.integration import advance
from pyro_mdm.simulated.nonlinear import NonlinearDiffusion
from pyro_mdm.simulated.path_integral import path_integral
from pyro_mdm.simulated.simulation import Simulation
from pyro_mdm.support.checks import check_shape, checked_arguments

if TYPE_CHECKING:
    from pyro_mdm.scores.base import Score

__all__ = ["SimulatedPath", "arrival", "simulated_kl"]


class SimulatedPath(NoisingLaw):
    """The simulated distribution ``q(y_{s_1}, …, y_{s_N} | x)`` of a nonlinear diffusion.

    Values are (*batch, N, K, *event_shape) in x's dtype. At ε the distribution is Gaussian and has
    a density; at later times it can only be sampled.

    Args:
        diffusion: the noising diffusion.
        x: data, (*batch, *event_shape).
        times: increasing times in (ε, T], (N,); None: the start time ε alone.
        event_dim: the number of dimensions of a datum; None: all of x's but the first.
        simulation: settings of the simulation of paths and of the bound's estimate; None: the
            diffusion's.

    Raises:
        ValueError: as for :class:`~pyro_mdm.paths.NoisingPath`; times before ε; a diffusion that
            fails :meth:`NonlinearDiffusion.check`.
        SimulationError: a path exploded.

    Example:
        >>> from pyro_mdm import CLD
        >>> from pyro_mdm.simulated import Simulated
        >>> path = SimulatedPath(Simulated(CLD()), torch.randn(4, 3))
        >>> y = path.rsample()
        >>> y.shape, path.log_prob(y).shape
        (torch.Size([4, 1, 2, 3]), torch.Size([4]))
    """

    @checked_arguments
    def __init__(
        self,
        diffusion: NonlinearDiffusion,
        x: Tensor,
        times: Tensor | None = None,
        *,
        event_dim: int | None = None,
        simulation: Simulation | None = None,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(diffusion, x, times, event_dim=event_dim, validate_args=validate_args)
        self.simulation = simulation if simulation is not None else diffusion.simulation
        if self.times is not None and self.times[0] < diffusion.start_time - 1e-9:
            raise ValueError(
                f"times start at {float(self.times[0]):.4g}, before the start time "
                f"{float(diffusion.start_time):.4g}, where y given x is known"
            )

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        start = self.diffusion.start
        lead = (*sample_shape, *self.batch_shape)
        shape = (*lead, *self.event_shape[1:])
        noise = randomness.normal(shape, self.x.dtype, self.x.device)
        y = outer(start.mean, self.x, self.x_dim) + apply_matrix(
            start.scale_tril, noise, self.x_dim
        )
        if self.times is None:
            return y.unsqueeze(len(lead))
        begin = self.diffusion.start_time
        flat = y.reshape(-1, *self.event_shape[1:])
        first = bool(self.times[0] <= begin)
        times = self.times if first else torch.cat([begin.reshape(1), self.times])
        path = self.diffusion.simulate(flat, times, self.simulation)
        value: Tensor = path[:, 0 if first else 1 :].reshape(*lead, *self.event_shape)
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """log q(y_ε | x), (*batch), nats.

        Raises:
            NotImplementedError: the path has times beyond ε.
        """
        if self.times is not None:
            raise NotImplementedError(
                f"a simulated path of {type(self.diffusion).__name__} has no density at "
                f"{times_text(self.times)}; leave out times, or use a LinearDiffusion"
            )
        if self._validate_args:
            self._validate_sample(value)
        start = self.diffusion.start
        residual = self.states(value)[0] - outer(start.mean, self.x, self.x_dim)
        return gaussian_log_prob(residual, start.scale_tril, start.log_det, self.x_dim)

    def by_term(self, kl: PathKL, path: Tensor) -> PathKL:
        """The divergence by term, with :func:`arrival` as its prior KL.

        Args:
            kl: the divergence, as :func:`simulated_kl` estimates it.
            path: the state at ε, (*batch, 1, K, *event_shape), from which a new path arrives at T.
        """
        prior = arrival(self, path)
        return PathKL(prior, kl.prior + kl.diffusion - prior, kl.log_snr)


@checked_arguments
def simulated_kl(
    noising: SimulatedPath, generative: GenerativeLaw, path: Tensor | None = None
) -> PathKL:
    """An estimate of KL(q ‖ p), from one path of each datum.

    Args:
        noising: the distribution q of the noising path.
        generative: the distribution p of the generative path.
        path: the state at ε, (*batch, 1, K, *event_shape), drawn from ``noising``; None: a new
            draw. If the decoder is evaluated at it too, the noise of both cancels.

    Returns:
        :class:`PathKL`, (*batch), nats, whose terms sum to the divergence. ``prior`` is one draw of
        KL(q(y_ε|x) ‖ π), the divergence at r = 0. ``diffusion`` is the change by the score,
        negative once it has learned; see (1) of :mod:`pyro_mdm.simulated.path_integral`.

    Raises:
        ValueError: different diffusions, whose paths are mutually singular.
        SimulationError: a path exploded.

    Example:
        >>> from pyro_mdm import CLD, DiffusionModel, RawScore, Simulation
        >>> from pyro_mdm.networks import MLP
        >>> from pyro_mdm.simulated import Simulated
        >>> diffusion = Simulated(CLD(), Simulation(step_size=0.1))
        >>> model = DiffusionModel(diffusion, RawScore(MLP(2 * 2)), event_shape=(2,))
        >>> noising = SimulatedPath(diffusion, torch.randn(8, 2))
        >>> simulated_kl(noising, model.path_law()).diffusion.shape
        torch.Size([8])
    """
    diffusion = shared_diffusion(noising, generative)
    y = noising.rsample() if path is None else path
    (state,) = noising.states(y)
    flat = state.reshape(-1, *noising.event_shape[1:])
    integral = path_integral(diffusion, generative.score_at, flat, noising.simulation)
    shape = noising.batch_shape
    rest = noising.log_prob(y) - diffusion.prior.log_prob(flat).reshape(shape)
    return PathKL(rest, integral.value.reshape(shape), integral.level[0].reshape(shape))


@torch.no_grad()
@checked_arguments
def arrival(noising: SimulatedPath, path: Tensor, end: Tensor | None = None) -> Tensor:
    """-log π(y_T) - H(π) at the end of one path of each datum, (*batch), nats.

    It is the cross-entropy with the prior − the prior's entropy: 0 on average if the distribution
    of y_T is π. It may be negative.

    Args:
        noising: the distribution of the noising path.
        path: the state at ε, (*batch, 1, K, *event_shape).
        end: the states at T, (n, K, *event_shape); None: simulated from ``path``.

    Example:
        >>> from pyro_mdm import CLD, Simulation
        >>> from pyro_mdm.simulated import Simulated
        >>> diffusion = Simulated(CLD(), Simulation(step_size=0.1))
        >>> noising = SimulatedPath(diffusion, torch.randn(4, 3))
        >>> arrival(noising, noising.rsample()).shape
        torch.Size([4])
    """
    diffusion, settings = noising.diffusion, noising.simulation
    if end is None:
        check_shape("path", path, noising.batch_shape + noising.event_shape)
        y = path.reshape(-1, *noising.event_shape[1:])
        whole = torch.linspace(0, 1, settings.points + 1)
        knots, steps = diffusion.time_at_progress(whole), settings.steps() // settings.points
        end = advance(diffusion, y, knots, steps, settings)[-1]
    entropy = diffusion.prior.entropy(noising.num_dims).to(end)
    value: Tensor = (-diffusion.prior.log_prob(end) - entropy).reshape(noising.batch_shape)
    return value


noising_law.register(NonlinearDiffusion, SimulatedPath)


@density_bound.register(NonlinearDiffusion)
def _bound(diffusion: NonlinearDiffusion, score: Score, y: Tensor) -> Tensor:
    def score_at(y: Tensor, s: Tensor) -> Tensor:
        return score.score(diffusion, y, s)

    gain = path_integral(diffusion, score_at, y, diffusion.simulation)
    value: Tensor = diffusion.prior.log_prob(y) - gain.value
    return value


@path_divergence.register(SimulatedPath)
def _simulated(
    noising: SimulatedPath, generative: GenerativeLaw, path: Tensor | None = None
) -> PathKL:
    return simulated_kl(noising, generative, path)
