r"""A score in coordinates where noised data have unit variance, for any diffusion."""

from __future__ import annotations

from functools import singledispatch

import torch
from torch import Tensor, nn

import pyro_mdm.randomness as randomness
from pyro_mdm.diffusions.base import Diffusion, full_precision, with_event_dims
from pyro_mdm.diffusions.clocks import log_snr_times
from pyro_mdm.diffusions.closed import Kernels, noised_state
from pyro_mdm.diffusions.kernels import inverse_tril
from pyro_mdm.scores.base import Coefficients, Score, call_on_state, check_fit
from pyro_mdm.simulated.integration import advance
from pyro_mdm.simulated.nonlinear import NonlinearDiffusion
from pyro_mdm.support.checks import Count, Several, check_finite, checked_arguments

__all__ = ["ResidualScore", "noised_moments"]


class ResidualScore(Score):
    r"""The score of a Gaussian fit of y_s plus a network's correction, for any diffusion.

        s_θ(y, s) = Wᵀ ( F(W (y - m), λ(s)) - W (y - m) ),    W = L^{-1},    C = L Lᵀ

    m and C are the mean and covariance (K×K per data dimension) of noised data, fitted once by
    :meth:`fit` on a grid of noise levels; m and W are interpolated linearly. Network inputs and
    outputs then have unit variance, and at F = 0 the model is that of Gaussian data. m and C only
    choose coordinates and need not stay exact while a diffusion is learned.

    Args:
        network: module F called with the K variables as channels, (n, K·C, *spatial), and λ, (n,),
            which returns the shape of its input.
        levels: increasing log SNRs, (M,), M ≥ 2.
        mean: mean m of the state at each level, (M, K, *event_shape).
        covariance: covariance C of the variables, (M, *event_shape, K, K), positive definite.

    Raises:
        ValueError: NaN, states of the wrong shape, a network output of another shape.

    Example:
        >>> from pyro_mdm import CLD
        >>> from pyro_mdm.networks import MLP
        >>> network = MLP(features=4)  # K = 2 variables of 2 dimensions
        >>> score = ResidualScore.fit(network, CLD(), torch.randn(100, 2))
        >>> score.score(CLD(), torch.zeros(3, 2, 2), 0.5).shape
        torch.Size([3, 2, 2])
    """

    serves_nonlinear = True
    levels: Tensor
    mean: Tensor
    whitener: Tensor

    @checked_arguments
    def __init__(
        self, network: nn.Module, levels: Tensor, mean: Tensor, covariance: Tensor
    ) -> None:
        super().__init__(network, tuple(mean.shape[2:]))
        levels = levels.reshape(-1)
        expected = (len(levels), *mean.shape[2:], mean.shape[1], mean.shape[1])
        if len(levels) != len(mean) or covariance.shape != expected or len(levels) < 2:
            raise ValueError(
                f"mean has shape {tuple(mean.shape)} and covariance {tuple(covariance.shape)} at "
                f"{len(levels)} levels, expected (M, K, *event_shape) and (M, *event_shape, K, K) "
                "with M ≥ 2"
            )
        for name, value in (("levels", levels), ("mean", mean), ("covariance", covariance)):
            check_finite(name, value)
        self.register_buffer("levels", levels.detach().double().clone())
        self.register_buffer("mean", mean.detach().double().clone())
        root = torch.linalg.cholesky(covariance.detach().double())
        self.register_buffer("whitener", inverse_tril(root).contiguous())

    @classmethod
    @checked_arguments
    def fit(
        cls,
        network: nn.Module,
        diffusion: Diffusion,
        train_x: Tensor,
        *,
        num_levels: Several = 33,
        num_paths: Count = 512,
        seed: int = 0,
    ) -> ResidualScore:
        """The score with m and C of noised data, in closed form or by simulation.

        Args:
            network: module F, as for :class:`ResidualScore`.
            diffusion: the noising diffusion.
            train_x: training data in model space, (N, *event_shape).
            num_levels: number of levels, both ends of the diffusion among them.
            num_paths: number of simulated paths to each level, without a closed form.
            seed: seed of the paths; the caller's random state stays as it is.

        Raises:
            TypeError: an argument of another kind.
            ValueError: data that do not fit, or numbers that are too small.
        """
        check_fit(network, train_x)
        with torch.no_grad():
            s = log_snr_times(diffusion, num_levels).flip(0)
            levels = diffusion.log_snr(s)
            mean, covariance = noised_moments(diffusion, train_x, s, num_paths, seed)
            return cls(network, levels, mean, covariance)

    def score_at(self, diffusion: Diffusion, y: Tensor, at: Coefficients) -> Tensor:
        batch_dim = at.s.dim() or 1
        log_snr = at.log_snr.to(y.device).expand(y.shape[:batch_dim])
        m, W = (t.to(y.dtype) for t in self._coordinates(log_snr))
        with full_precision(y):
            rest = (y - m).movedim(batch_dim, -1).unsqueeze(-1)
            white = (W @ rest).squeeze(-1).movedim(-1, batch_dim)
        out = call_on_state(self, white, at)
        with full_precision(y):
            target = (out - white).movedim(batch_dim, -1).unsqueeze(-1)
            return (W.mT @ target).squeeze(-1).movedim(-1, batch_dim)

    def _coordinates(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """m like a state and W (*batch, *event_shape, K, K) at log SNRs (*batch)."""
        i = torch.searchsorted(self.levels, log_snr.detach().contiguous()).clamp(
            1, len(self.levels) - 1
        )
        low, high = self.levels[i - 1], self.levels[i]
        w = ((log_snr - low) / (high - low)).clamp(0, 1)  # outside the grid, as at its end
        m = torch.lerp(self.mean[i - 1], self.mean[i], with_event_dims(w, self.mean[i]))
        W = torch.lerp(self.whitener[i - 1], self.whitener[i], with_event_dims(w, self.whitener[i]))
        return m, W


@singledispatch
def noised_moments(
    diffusion: Diffusion, train_x: Tensor, s: Tensor, num_paths: int, seed: int
) -> tuple[Tensor, Tensor]:
    """The mean (M, K, *event_shape) and covariance (M, *event_shape, K, K) of noised data.

    Dispatched on the kind of diffusion. Register a function for a kind of your own that is neither
    :class:`~pyro_mdm.diffusions.Kernels` nor simulated.

    Args:
        diffusion: the noising diffusion.
        train_x: training data in model space, (N, *event_shape).
        s: times, (M,).
        num_paths: number of simulated paths to each time, without a closed form.
        seed: seed of the paths.
    """
    raise NotImplementedError(
        f"no moments of noised data are registered for {type(diffusion).__name__}; see "
        "noised_moments"
    )


@noised_moments.register(Kernels)
def _gaussian_moments(
    diffusion: Kernels, train_x: Tensor, s: Tensor, num_paths: int, seed: int
) -> tuple[Tensor, Tensor]:
    marginal, x = diffusion.marginal(s), train_x.to(s.device).double()
    aa = marginal.mean.unsqueeze(-1) * marginal.mean.unsqueeze(-2)
    variance = x.var(0, unbiased=False)[..., None, None]
    if marginal.mean.dim() > 2:  # by data dimension
        return marginal.mean.movedim(-1, 1) * x.mean(0), marginal.covariance + variance * aa
    a = marginal.mean.reshape(*marginal.mean.shape, *[1] * (x.dim() - 1))
    shape = (len(s), *[1] * (x.dim() - 1), *aa.shape[1:])
    return a * x.mean(0), marginal.covariance.reshape(shape) + variance * aa.reshape(shape)


@noised_moments.register(NonlinearDiffusion)
def _simulated_moments(
    diffusion: NonlinearDiffusion, train_x: Tensor, s: Tensor, num_paths: int, seed: int
) -> tuple[Tensor, Tensor]:
    with randomness.piece(0, 1, seed):
        states = _noised_data(diffusion, train_x, s, num_paths)
    mean = states.mean(1)
    centred = (states - mean.unsqueeze(1)).movedim(2, -1)  # (M, n, *event, K)
    return mean, torch.einsum("mn...i,mn...j->m...ij", centred, centred) / num_paths


def _noised_data(
    diffusion: NonlinearDiffusion, train_x: Tensor, s: Tensor, num_paths: int
) -> Tensor:
    """States (M, n, K, *event_shape) of ``num_paths`` paths from data to each time of s (M,)."""
    chosen = torch.arange(num_paths) * len(train_x) // num_paths
    x = train_x[chosen].to(s.device).double()
    diffusion.check(x.shape[1:])
    x = x.repeat(len(s), *[1] * (x.dim() - 1))
    noise = randomness.normal((len(x), diffusion.num_variables, *x.shape[1:]), x.dtype, x.device)
    y = noised_state(diffusion.start, x, noise)
    start, ends = diffusion.start_time, s.repeat_interleave(num_paths)
    knots = torch.stack([start.expand(len(ends)), torch.maximum(ends, start)])
    settings = diffusion.simulation
    y = advance(diffusion, y, knots, settings.steps(), settings)
    return y.reshape(len(s), num_paths, *y.shape[2:])
