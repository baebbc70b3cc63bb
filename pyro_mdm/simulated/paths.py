r"""The law of a simulated noising path, and its divergence from a generative one.

The counterpart of :class:`~pyro_mdm.paths.NoisingPath`, which has a closed form: the law is exact
at the start time ε, and simulated by torchsde beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_mdm import randomness
from pyro_mdm.diffusions.matrices import apply_matrix, outer
from pyro_mdm.diffusions.simulation import Simulation
from pyro_mdm.paths.base import NoisingLaw, PathKL, gaussian_log_prob, times_text
from pyro_mdm.paths.density import density_bound
from pyro_mdm.paths.divergence import path_divergence, shared_diffusion
from pyro_mdm.paths.generative import GenerativeLaw
from pyro_mdm.paths.laws import noising_law
from pyro_mdm.simulated.integration import advance
from pyro_mdm.simulated.nonlinear import NonlinearDiffusion
from pyro_mdm.simulated.path_integral import path_integral

if TYPE_CHECKING:
    from pyro_mdm.scores.base import Score

__all__ = ["SimulatedPath", "arrival", "simulated_kl"]


class SimulatedPath(NoisingLaw):
    """The simulated law q(y_{s_1}, …, y_{s_N} | x) of a nonlinear diffusion.

    Args:
        diffusion: the noising diffusion.
        x: data, (*batch, *event_shape).
        times: (N,) increasing times in (ε, T]; the start time ε alone by default.
        event_dim: number of dimensions of a datum; all of x's but the first by default.
        simulation: settings of the simulation of paths and of the bound's estimate; the diffusion's
            by default.

    Values are (*batch, N, K, *event_shape) in x's dtype. At ε the law is Gaussian and has a
    density; at later times it can only be sampled.

    Raises:
        ValueError: as for :class:`~pyro_mdm.paths.NoisingPath`; times before ε; a diffusion that
            fails :meth:`NonlinearDiffusion.check`.
        SimulationError: a path exploded.
    """

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
        """The divergence by term, with :func:`arrival` as prior KL, on another path."""
        prior = arrival(self, path)
        return PathKL(prior, kl.prior + kl.diffusion - prior, kl.log_snr)


def simulated_kl(
    noising: SimulatedPath, generative: GenerativeLaw, path: Tensor | None = None
) -> PathKL:
    """An estimate of the divergence of a noising from a generative law, from one path per datum.

    Args:
        path: the state at ε, (*batch, 1, K, *event_shape), drawn from ``noising``; None to draw it.
            With the one that the decoder is evaluated at, the noise of both cancels.

    Returns:
        :class:`PathKL`, (*batch), nats, whose terms sum to the divergence. ``prior`` is one draw of
        KL(q(y_ε|x) ‖ π), the divergence at r = 0. ``diffusion`` is what the score adds, negative
        once it has learned; see (1) of :mod:`pyro_mdm.simulated.path_integral`.

    Raises:
        ValueError: the laws are of different diffusions, and so mutually singular.
        SimulationError: a path exploded.
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
def arrival(noising: SimulatedPath, path: Tensor, end: Tensor | None = None) -> Tensor:
    """-log π(y_T) - H(π) at the end of one path per datum, (*batch), nats.

    It is the excess of the cross-entropy with the prior over the prior's entropy: 0 on average if
    y_T has the law π. It may be negative.

    Args:
        path: the state at ε, (*batch, 1, K, *event_shape).
        end: the states at T, (n, K, *event_shape); None to simulate them.
    """
    diffusion, settings = noising.diffusion, noising.simulation
    if end is None:
        y = path.reshape(-1, *noising.event_shape[1:])
        whole = torch.linspace(0, 1, settings.points + 1)
        knots, steps = diffusion.time_at_progress(whole), settings.steps() // settings.points
        end = advance(diffusion, y, knots, steps, settings)[-1]
    entropy = diffusion.prior.entropy(noising.num_dims).to(end)
    value: Tensor = (-diffusion.prior.log_prob(end) - entropy).reshape(noising.batch_shape)
    return value


noising_law.register(NonlinearDiffusion, SimulatedPath)


@density_bound.register(NonlinearDiffusion)
def _bound(diffusion: Any, score: Score, y: Tensor) -> Tensor:
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
