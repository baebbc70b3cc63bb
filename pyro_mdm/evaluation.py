r"""Likelihood estimates with their errors.

The bound is estimated as a likelihood ratio where the score has an exact baseline p_0 (the Gaussian
fit of :class:`~pyro_mdm.scores.Denoiser`, the histogram model of
:class:`~pyro_mdm.scores.DiscreteDenoiser`). The baseline's diffusion term is known for every x, so
that of the network is estimated as

    R (h_θ - c h_0) + c H_0,      h = ½ e^λ ‖x - x̂‖²,   H_0 = ∫ h_0 dλ in closed form,

with the same noise in h_θ and h_0: only a difference is random. The coefficient c is fitted, on the
other half of the data so that no bias comes of it. With c = 1 this is log p_0(x) + m(x) plus a
difference, m being the mismatch of the prior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.laws import low_discrepancy, prior_kl
from pyro_mdm.model import DiffusionModel
from pyro_mdm.scores import DenoiserScore

__all__ = ["Estimate", "log_likelihood"]


@dataclass(frozen=True)
class Estimate:
    """A lower bound on the mean log-likelihood of a data set, in nats per datum, with its errors.

    ``standard_error`` is over the data (it includes the Monte Carlo error);
    ``monte_carlo_error`` is what drawing other noise for the same data would change.
    """

    mean: float
    standard_error: float
    monte_carlo_error: float
    reconstruction: tuple[float, float]  # mean, standard error; nats per datum
    prior_kl: tuple[float, float]
    diffusion: tuple[float, float]
    num_data: int
    num_dims: int
    network_calls: int  # network evaluations of one datum
    coefficient: float  # of the control variate, 0 without one
    per_datum: Tensor  # (num_data,) bound of each datum, nats
    log_snr_edges: Tensor  # (bins + 1,)
    density: Tensor  # (bins,) integrand of the diffusion term, nats per unit of log SNR
    density_error: Tensor  # (bins,) its standard error

    @property
    def bits_per_dim(self) -> float:
        """-mean / (d ln 2)."""
        return -self.mean / (self.num_dims * math.log(2))

    @property
    def bits_per_dim_error(self) -> float:
        """The standard error in bits/dim."""
        return self.standard_error / (self.num_dims * math.log(2))

    def __str__(self) -> str:
        unit = self.num_dims * math.log(2)
        return (
            f"bits/dim {self.bits_per_dim:.4f} ± {self.bits_per_dim_error:.4f} "
            f"(reconstruction {-self.reconstruction[0] / unit:.4f}, "
            f"prior KL {self.prior_kl[0] / unit:.4f}, diffusion {self.diffusion[0] / unit:.4f})"
        )


def log_likelihood(
    model: DiffusionModel,
    guide: DiffusionGuide,
    x: Tensor,
    *,
    method: str = "elbo",
    draws: int = 4,
    batch_size: int = 256,
    seed: int = 0,
    control_variate: bool = True,
    bins: int = 20,
    progress: bool = False,
) -> Estimate:
    """Estimate the evidence lower bound of each datum and its mean.

    Args:
        model, guide: over one diffusion.
        x: data in model space, (n, *event_shape).
        method: "elbo", the continuous-time bound.
        draws: network evaluations per datum, at log SNRs of low discrepancy.
        batch_size: data per network call.
        seed: of the noise; the same seed gives different models the same noise and log SNRs.
        control_variate: whether to use the score's exact baseline.
        bins: of the diffusion term against log SNR.
        progress: show a progress bar.

    Raises:
        ValueError: an unknown method, fewer than 4 data or 1 draw, or programs over different
            diffusions.
    """
    if method != "elbo":
        raise ValueError(f"method is {method!r}, expected 'elbo', the one there is")
    if len(x) < 4 or draws < 1:
        raise ValueError(f"{len(x)} data and {draws} draws, expected at least 4 and 1")
    if model.diffusion is not guide.diffusion:
        raise ValueError(
            "the guide's diffusion is not the model's; build DiffusionGuide(model.diffusion)"
        )
    if model.times is not None:
        raise ValueError("this model is a chain on a grid; build one with times=None for 'elbo'")
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return _elbo(model, x, draws, batch_size, seed, control_variate, bins, progress)
    finally:
        model.train(was_training)


def _elbo(
    model: DiffusionModel,
    x: Tensor,
    draws: int,
    batch_size: int,
    seed: int,
    control_variate: bool,
    bins: int,
    progress: bool,
) -> Estimate:
    diffusion, score = model.diffusion, model.score_function
    low, high = float(diffusion.terminal_log_snr), diffusion.max_log_snr
    n, d, width = len(x), math.prod(model.event_shape), high - low
    has_baseline = control_variate and isinstance(score, DenoiserScore)
    generator = torch.Generator(x.device).manual_seed(seed)

    log_snr = torch.empty(draws, n, dtype=torch.float64)
    reconstruction, h, h0 = (torch.zeros(draws, n, dtype=torch.float64) for _ in range(3))
    known = torch.zeros(n, dtype=torch.float64)
    batches = range(0, n, batch_size)
    total = draws * len(batches)
    bar = _bar(total, progress)
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator, device=x.device)))
        for j in range(draws):
            log_snr[j] = low + width * low_discrepancy(n)[torch.randperm(n)]
            for i in batches:
                part = slice(i, i + batch_size)
                xs = x[part]
                lam = log_snr[j, part].to(x.device)
                start = diffusion.start
                noise = torch.randn(
                    len(xs), diffusion.num_variables, *xs.shape[1:], dtype=x.dtype, device=x.device
                )
                y = _state(start.mean, start.scale_tril, xs, noise)
                law = model.likelihood(diffusion, score, y)
                reconstruction[j, part] = law.log_prob(xs).double().cpu()
                if has_baseline and isinstance(score, DenoiserScore):
                    pair = score.baseline_integrand(xs, lam)
                    h[j, part], h0[j, part] = (v.double().cpu() for v in pair)
                else:
                    h[j, part] = score.integrand(diffusion, xs, lam).double().cpu()
                bar.update(1)
    bar.close()
    if has_baseline and isinstance(score, DenoiserScore):
        ends = [torch.full((), v, dtype=torch.float64, device=x.device) for v in (low, high)]
        for i in batches:
            xs = x[i : i + batch_size]
            first, last = (score.baseline_kl(xs, v.expand(len(xs))) for v in ends)
            known[i : i + batch_size] = (last - first).double().cpu()

    raw = width * h
    term, coefficient = _controlled(raw, width * h0, known) if has_baseline else (raw, 0.0)
    diffusion_term = term.mean(0)
    kl = prior_kl(diffusion, x, len(model.event_shape)).double().cpu()
    per_datum = reconstruction.mean(0) - kl - diffusion_term
    by_draw = (reconstruction - term).mean(1)
    density, error, edges = _by_log_snr(log_snr, h, low, high, bins)
    return Estimate(
        mean=float(per_datum.mean()),
        standard_error=_standard_error(per_datum),
        monte_carlo_error=_standard_error(by_draw) if draws > 1 else math.nan,
        reconstruction=_mean_and_error(reconstruction.mean(0)),
        prior_kl=_mean_and_error(kl),
        diffusion=_mean_and_error(diffusion_term),
        num_data=n,
        num_dims=d,
        network_calls=n * draws,
        coefficient=coefficient,
        per_datum=per_datum,
        log_snr_edges=edges,
        density=density,
        density_error=error,
    )


def _state(a: Tensor, L: Tensor, x: Tensor, noise: Tensor) -> Tensor:
    """y = a x + L ε, (n, K, *event)."""
    a = a.to(x.dtype).reshape(-1, *(1,) * (x.dim() - 1))
    return a * x.unsqueeze(1) + (L.to(x.dtype) @ noise.flatten(2)).reshape(noise.shape)


def _controlled(term: Tensor, baseline: Tensor, known: Tensor) -> tuple[Tensor, float]:
    """``term - c (baseline - known)`` with each half of the data using the other half's c.

    c is the coefficient of the control in the regression of ``term`` on (1, known, control).
    """
    control = baseline - known
    n = term.shape[1]
    halves = (torch.arange(n) % 2 == 0, torch.arange(n) % 2 == 1)
    result, coefficients = term.clone(), []
    for mine, other in (halves, halves[::-1]):
        g, t = control[:, other].flatten(), term[:, other].flatten()
        level = known[other].expand(len(term), -1).flatten()
        design = torch.stack([torch.ones_like(g), level, g], 1)
        design = design / design.norm(dim=0).clamp_min(1e-300)
        solution = torch.linalg.lstsq(design, t.unsqueeze(1), driver="gelsd").solution
        c = float(solution[2, 0] / g.norm()) if g.norm() > 0 else 0.0
        result[:, mine] -= c * control[:, mine]
        coefficients.append(c)
    return result, sum(coefficients) / 2


def _by_log_snr(
    log_snr: Tensor, h: Tensor, low: float, high: float, bins: int
) -> tuple[Tensor, Tensor, Tensor]:
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
    index = (torch.bucketize(log_snr.flatten(), edges) - 1).clamp(0, bins - 1)
    values = h.flatten()
    count = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, torch.ones_like(values))
    total = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, values)
    square = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, values**2)
    mean = total / count
    variance = (square / count - mean**2).clamp_min(0) * count / (count - 1)
    return mean, (variance / count).sqrt(), edges


def _standard_error(values: Tensor) -> float:
    return float(values.std() / math.sqrt(len(values)))


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), _standard_error(values)


def _bar(total: int, progress: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="evaluating", unit="batch", disable=not progress, leave=False)
