"""The generative path on a grid of times: a Markov chain with an exact density."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_mdm.diffusions.base import Cap, Diffusion, require
from pyro_mdm.diffusions.kernels import KernelPrecisionError
from pyro_mdm.diffusions.matrices import apply_matrix, of_counted, outer
from pyro_mdm.diffusions.posterior import posterior
from pyro_mdm.paths.base import (
    BoundScore,
    GenerativeLaw,
    NoisingPath,
    PathKL,
    checked_times,
    prior_kl,
    shared_diffusion,
    times_text,
)
from pyro_mdm.paths.density import check_counts_all, gaussian_log_prob, white_log_prob
from pyro_mdm.randomness import normal, normal_for_data
from pyro_mdm.scores.base import Score, coefficients
from pyro_mdm.support.checks import check_shape, checked_arguments, tensor_device

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
        >>> from pyro_mdm.diffusions.clocks import log_snr_times
        >>> from pyro_mdm.networks import MLP
        >>> diffusion = CLD()
        >>> score = Denoiser.fit(MLP(2), torch.randn(100, 2))
        >>> chain = GenerativeChain(diffusion, score, (2,), log_snr_times(diffusion, 9))
        >>> chain.sample((3,)).shape  # 3 paths at 9 times, K = 2 variables of 2 dimensions
        torch.Size([3, 9, 2, 2])
    """

    times: Tensor

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
        device = tensor_device(self.score) or self.times.device
        score = BoundScore(self.diffusion, self.score)

        with torch.no_grad():
            steps = posterior(self.diffusion, self.times[1:], self.times[:-1])
            # cholesky_ex: Σ_π is positive definite, and cholesky would wait for the device
            root = torch.linalg.cholesky_ex(self.diffusion.prior_covariance).L
            raw = not self.score.denoises
            at = coefficients(self.diffusion, self.times, raw=raw).rows(torch.device(device), raw)
            y = apply_matrix(root, normal_for_data(shape, device), self.x_dim)
            states = [y]
            for i in range(len(self.times) - 2, -1, -1):
                x_hat, step = score.denoise_at(y, at[i + 1]), steps.at(i)
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

    def divergence(self, noising: NoisingPath) -> PathKL:
        """The divergence of a noising chain on the same grid, by one network call at each time.

            KL(q(y_T|x) ‖ π) + Σ_i ½ (SNR_i - SNR_{i+1}) E‖x - x̂‖²

        Noise is drawn once for each time; the sum over the grid is complete. ``log_snr`` is λ(T).

        Raises:
            ValueError: chains of different diffusions or grids.
        """
        diffusion, times, event_dim = shared_diffusion(noising, self), self.times, noising.x_dim
        if noising.times is None or not torch.equal(noising.times, times):
            raise ValueError(
                f"the guide's path is seen at {times_text(noising.times)}, the model's at "
                f"{times_text(times)}; expected one grid, give both the same times"
            )
        x = noising.x.reshape(-1, *noising.x_shape)
        marginals, shape = diffusion.marginal(times), (len(x), *noising.event_shape[1:])
        snr, total = marginals.log_snr.exp(), x.new_zeros(len(x))
        score, counted = self.score.given(x), self.score.counts(x)
        for i in range(1, len(times)):
            marginal, noise = marginals.at(i), normal(shape, x.dtype, x.device)
            y = outer(marginal.mean, x, event_dim)
            y = y + apply_matrix(marginal.scale_tril, noise, event_dim)
            x_hat = score.denoise(diffusion, y, times[i].expand(len(x)))
            error = of_counted((x - x_hat).square(), counted)
            weight = 0.5 * (snr[i - 1] - snr[i]).to(x)  # one, or one for each data dimension
            total = total + (weight * error).flatten(1).sum(1)
        return PathKL(
            prior_kl(diffusion, noising.x, event_dim, self.score.counts(noising.x)),
            total.reshape(noising.batch_shape),
            diffusion.terminal_log_snr.detach().expand(noising.batch_shape),
        )

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
