"""The generative path on a grid of times: a Markov chain with an exact density."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_mdm.diffusions.base import Cap, Diffusion, require
from pyro_mdm.diffusions.kernels import KernelPrecisionError
from pyro_mdm.diffusions.matrices import apply_matrix, outer
from pyro_mdm.diffusions.posterior import posterior
from pyro_mdm.paths.base import check_counts_all, checked_times, gaussian_log_prob, white_log_prob
from pyro_mdm.paths.generative import BoundScore, GenerativeLaw
from pyro_mdm.randomness import normal_for_data
from pyro_mdm.scores.base import Score
from pyro_mdm.support.checks import check_shape
from pyro_mdm.support.doors import checked_arguments

__all__ = ["GenerativeChain", "check_chain"]


def check_chain(diffusion: Diffusion) -> None:
    """Raises UnsupportedDiffusionError where steps back need more than kernels and x̂."""
    needed = (Cap.KERNELS, Cap.READOUT, Cap.OWN_DRIFT, Cap.NO_CONTEXT)
    fix = "use the model in continuous time (leave out times), and its bound"
    require(diffusion, *needed, who="a chain on a grid, which steps back by x̂ alone,", fix=fix)


class GenerativeChain(GenerativeLaw):
    """The generative path on a grid ε = s_1 < … < s_N = T: a Markov chain with an exact density.

    y_T ~ N(0, Σ_π), and each step is the exact Gaussian posterior ``q(y_{s_i} | y_{s_{i+1}}, x̂)``
    of the noising process with the denoised estimate in place of x.

    Args:
        diffusion: the noising diffusion that is reversed.
        score: the score, a :class:`~pyro_mdm.scores.Score`.
        event_shape: shape of a datum.
        times: increasing times from ε to T, (N,), N ≥ 2.
        batch_shape: batch shape of the distribution.

    Raises:
        UnsupportedDiffusionError: a diffusion without closed-form kernels, with a latent context,
            or that sees the data.
        ValueError: times that do not run from ε to T.

    Example:
        >>> from pyro_mdm import CLD, Denoiser
        >>> from pyro_mdm.networks import MLP
        >>> diffusion = CLD()
        >>> score = Denoiser.fit(MLP(2), torch.randn(100, 2))
        >>> chain = GenerativeChain(diffusion, score, (2,), diffusion.log_snr_grid(9))
        >>> chain.sample((3,)).shape  # 3 paths at 9 times, K = 2 variables of 2 dimensions
        torch.Size([3, 9, 2, 2])
    """

    @checked_arguments
    def __init__(
        self,
        diffusion: Diffusion,
        score: Score,
        event_shape: Sequence[int],
        times: Tensor,
        *,
        batch_shape: Sequence[int] = (),
        validate_args: bool | None = None,
    ) -> None:
        check_chain(diffusion)
        self.score = score
        self.times = checked_times(diffusion, times, whole=True)
        super().__init__(
            diffusion, torch.Size(batch_shape), torch.Size(event_shape), len(times), validate_args
        )

    @checked_arguments
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        lead = (*sample_shape, *self.batch_shape)
        path = self.sample_in_float64(math.prod(lead)).to(
            BoundScore(self.diffusion, self.score).dtype
        )
        return path.reshape(*lead, *self.event_shape)

    def sample_in_float64(self, n: int) -> Tensor:
        """Paths (n, N, K, *event_shape) in float64, in which long grids have a density too."""
        shape = (n, *self.event_shape[1:])
        device = self.times.device
        score = BoundScore(self.diffusion, self.score)

        with torch.no_grad():
            steps = posterior(self.diffusion, self.times[1:], self.times[:-1])
            # cholesky_ex: Σ_π is positive definite, and cholesky would wait for the device
            root = torch.linalg.cholesky_ex(self.diffusion.prior_covariance).L
            y = apply_matrix(root, normal_for_data(shape, device), self.x_dim)
            states = [y]
            for i in range(len(self.times) - 2, -1, -1):
                x_hat = score.denoise(y, self.times[i + 1].expand(len(y)))
                step = steps.at(i)
                mean = apply_matrix(step.gain, y, self.x_dim)
                mean = mean + outer(step.mean_coefficient, x_hat, self.x_dim)
                y = mean + apply_matrix(step.scale_tril, normal_for_data(shape, device), self.x_dim)
                states.append(y)
        return torch.stack(states[::-1], 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p_θ(path), exact, (*batch), nats. One network call for all steps together.

        Args:
            value: paths, (*batch, N, K, *event_shape).

        Raises:
            ValueError: a score with observed or left-out dimensions.
            KernelPrecisionError: a dtype whose rounding moves states by a tenth of a step's noise.
        """
        check_shape("value", value, self.event_shape)
        if self._validate_args:
            self._validate_sample(value)
        check_counts_all(self.score, self.states(value)[0], "log p(path)")
        steps = posterior(self.diffusion, self.times[1:], self.times[:-1])
        self._check_resolution(steps.resolution, value.dtype)
        states = self.states(value)
        lead = value.shape[: value.dim() - len(self.event_shape)]
        later = torch.stack(states[1:])  # (N-1, *lead, K, *event)
        s = self.times[1:].reshape(-1, *(1,) * len(lead)).expand(-1, *lead)
        score = BoundScore(self.diffusion, self.score)  # in its network's precision
        x_hat = score.denoise(later.reshape(-1, *self.event_shape[1:]), s.reshape(-1))
        x_hat = x_hat.reshape(len(s), *lead, *self.x_shape)
        # K×K algebra and residuals in float64: they are small differences of the states
        total = gaussian_log_prob(
            states[-1].double(),
            torch.linalg.cholesky_ex(self.diffusion.prior_covariance).L,
            torch.logdet(self.diffusion.prior_covariance),
            self.x_dim,
        )
        for i in range(len(states) - 1):
            step = steps.at(i)
            mean = apply_matrix(step.gain, states[i + 1].double(), self.x_dim)
            mean = mean + outer(step.mean_coefficient, x_hat[i].double(), self.x_dim)
            white = apply_matrix(step.whitener, states[i].double() - mean, self.x_dim)
            total = total + white_log_prob(white, step.log_det, self.x_dim)
        return total.to(value.dtype)

    def _check_resolution(self, resolution: Tensor, dtype: torch.dtype) -> None:
        """Raises KernelPrecisionError where the rounding of states decides their density."""
        ratio = torch.finfo(dtype).eps / torch.finfo(torch.float64).eps
        worst = ratio * resolution.detach().max().item()
        if not worst <= 0.1:
            raise KernelPrecisionError(
                f"rounding states to {dtype} moves them by {worst:.1e} standard deviations of a "
                f"step of this {len(self.times)}-time grid, expected at most 0.1; use float64 "
                "states, fewer times, or a diffusion whose noise does not reach x so late"
            )
