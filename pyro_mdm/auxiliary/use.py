r"""The use that is made of auxiliary variables: by a trained score, by the start, and along paths.

Write y_s = a x + L η for the state of a data dimension, x_s for its first variable, v_s for the
others, and ``λ = log aᵀ Σ^{-1} a``. With h_θ(y) = s_θ(y, s) + Σ^{-1} y, which is all that a score
says of x (``Σ^{-1} a x̂`` for one of denoiser form), the diffusion term of a score s_θ is

    ½ ∫ E ‖h_θ(y_s) - Σ^{-1} a x‖²_{g²} ds,    as  ∇ log q(y | x) = Σ^{-1} (a x - y).

*The loss of a score that may not see v.* Let v' be drawn anew, given x_s alone: x' from the
distribution of data given x_s, then v' given x' and x_s. The score whose h is E[h_θ(x_s, v') | x_s]
sees no v, and has a bound of its own. With two such v', independent of each other, its term is

    ½ ∫ E ⟨h_θ(x_s, v') - Σ^{-1} a x, h_θ(x_s, v'') - Σ^{-1} a x⟩_{g²} ds.

For the exact score h becomes ``Σ^{-1} a E[x | x_s]``, the best there is without v, and the loss is
``½ ∫ E ( Var(x | x_s) - Var(x | z_s) ) e^λ (-dλ/ds) ds`` with z_s = aᵀ Σ^{-1} y_s e^{-λ}. The
distribution of data given x_s is taken to be Gaussian unless another one is given. Any gives a
valid bound, and for the exact score the right one gives the best.

*The loss of a score that may see z alone.* z_s holds all that y_s tells of x, and y_s = a z_s + r_s
with r_s independent of z_s and x: a score that makes something of r_s only adds noise. Let r' be
drawn anew, and y' = a z_s + r'. The term of the score whose h is E[h_θ(y') | z_s] is smaller by
``¼ ∫ E ‖h_θ(y_s) - h_θ(y'_s)‖²_{g²} ds``, exactly 0 for denoisers, since they read z_s.

*The cost of the start of v.* :class:`~pyro_mdm.likelihoods.JointTweedie` decodes x and v_0
together and takes log q(v_0 | x, y_ε) off. Integrating v_0 out of the same p(x, v_0 | y_ε) instead
gains E KL(q(v_0 | x, y_ε) ‖ p(v_0 | x, y_ε)), and reading x from z_ε, as
:class:`~pyro_mdm.likelihoods.Tweedie` does, the rest.

*The information in paths.* Before any training, v_s holds I(x; v_s | x_s) nats beyond x_s
(:func:`auxiliary_information`).

Source: derived for this library. The auxiliary variables, and the start that is integrated out, are
those of Singhal, Goldstein & Ranganath, "Where to Diffuse, How to Diffuse, and How to Get Back",
ICLR 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

import pyro_mdm.randomness as randomness
from pyro_mdm.diffusions.base import (
    Cap,
    Diffusion,
    Marginal,
    Times,
    full_precision,
    require,
    with_event_dims,
)
from pyro_mdm.diffusions.closed import Kernels, noised_state
from pyro_mdm.diffusions.linear import clock_noise
from pyro_mdm.diffusions.matrices import apply_matrix, outer
from pyro_mdm.elbo import check_programs
from pyro_mdm.evaluation.estimates import InNats
from pyro_mdm.guide import DiffusionGuide
from pyro_mdm.likelihoods.base import JointTweedie, Tweedie
from pyro_mdm.model import DiffusionModel
from pyro_mdm.scores.base import Score, coefficients, rotated
from pyro_mdm.support.checks import (
    Count,
    check_count,
    check_data,
    check_finite,
    checked_arguments,
    real_tensor,
)
from pyro_mdm.support.measured import Measured
from pyro_mdm.support.modules import evaluating
from pyro_mdm.support.progress import progress_bar

__all__ = [
    "AuxiliaryInformation",
    "AuxiliaryUse",
    "GaussianPosterior",
    "PosteriorDraw",
    "auxiliary_information",
    "auxiliary_use",
]

PosteriorDraw = Callable[[Tensor, Tensor], Tensor]
"""A function of ``z = x + e^{-λ/2} ε``, (n, *event_shape) in float64, and λ, (n,), that draws x."""

LEAST = -60.0  # the least λ_x: there x_s says nothing of x, and e^{-λ_x} is still a number
BINS, UNIFORM_SHARE = 128, 0.5
CALLS = 6  # the number of network calls of a draw: four on the way, and two at the start
TITLES = {
    "diffusion": "diffusion term",
    "x_alone": "  the score may not see v",
    "z_alone": "  the score may see z alone",
    "loss_x_alone": "lost without v",
    "loss_z_alone": "lost with z alone",
    "start_gap": "KL of v_0 in the joint decoder",
    "joint_loss": "lost by the joint decoder",
}
IN_CLOSED_FORM = (Cap.KERNELS, Cap.READOUT, Cap.OWN_DRIFT, Cap.NO_CONTEXT)


class AuxiliaryInformation(NamedTuple):
    """The information on x in a state and in its first variable alone; each like the times."""

    log_snr: Tensor  # λ, of the whole state
    log_snr_of_x: Tensor  # λ_x = log a_x²/Σ_xx, of x_s alone; at most λ
    nats: Tensor  # I(x; v_s | x_s) for Gaussian data, nats per dimension


@torch.no_grad()
@checked_arguments
def auxiliary_information(
    diffusion: Diffusion, s: Times, variance: float | Tensor = 1.0
) -> AuxiliaryInformation:
    """The information on x that v_s holds beyond x_s, for Gaussian data, in closed form.

    It is ``½ log (1 + c e^λ)/(1 + c e^{λ_x})`` nats per dimension, averaged over variances c, and
    tends to ½ (λ - λ_x) near the data. For K = 1 it is 0.

    Args:
        diffusion: diffusion with closed-form kernels.
        s: times in (0, T], of any shape.
        variance: variance of the data, a number, or variances along the axes of their covariance,
            (m,).

    Returns:
        :class:`AuxiliaryInformation`, each like s, or by data dimension where these differ.

    Raises:
        TypeError: a diffusion without closed-form kernels, or that sees the data.
        ValueError: variances that are negative or not finite.

    Example:
        >>> from pyro_mdm import CLD
        >>> information = auxiliary_information(CLD(max_log_snr=9.0), 0.5)
        >>> bool(information.log_snr > information.log_snr_of_x)
        True
    """
    fix = "ask it of its base, a LinearDiffusion"
    require(diffusion, *IN_CLOSED_FORM, who="auxiliary_information", fix=fix)
    c = real_tensor("variance", variance, "the variance of the data, or several (m,)").reshape(-1)
    check_finite("variance", c)
    if not len(c) or bool((c < 0).any()):
        raise ValueError(
            f"variance is {c.tolist()}, expected at least one, none of them below 0; give the "
            "eigenvalues of the data's covariance, or their mean"
        )
    marginal = cast(Kernels, diffusion).marginal(s)
    of_x = _log_snr_of_x(marginal)
    both = torch.stack([marginal.log_snr, of_x]).unsqueeze(-1) + c.to(of_x).log()
    nats = 0.5 * torch.nn.functional.softplus(both).mean(-1)
    return AuxiliaryInformation(marginal.log_snr, of_x, nats[0] - nats[1])


def _log_snr_of_x(marginal: Marginal) -> Tensor:
    """λ_x = log a_x²/Σ_xx; L_xx² is Σ_xx, since x comes first."""
    return 2 * (marginal.mean[..., 0].abs().log() - marginal.scale_tril[..., 0, 0].log())


class GaussianPosterior:
    """The posterior of Gaussian data of any covariance, given ``z = x + e^{-λ/2} ε``.

    Args:
        mean: mean of the data, (*event_shape).
        covariance: covariance of the flattened data, (d, d), symmetric positive semi-definite.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite, a negative eigenvalue.
    """

    @checked_arguments
    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        d = mean.numel()
        if covariance.shape != (d, d):
            raise ValueError(
                f"covariance has shape {tuple(covariance.shape)} for a mean of shape "
                f"{tuple(mean.shape)}, expected ({d}, {d}); give that of the flattened data"
            )
        check_finite("mean", mean)
        check_finite("covariance", covariance)
        values, vectors = torch.linalg.eigh(covariance.double())
        if values[0] < -1e-9 * values[-1].abs():  # a zero eigenvalue may come out below 0
            raise ValueError(
                f"covariance has the eigenvalue {float(values[0]):.3g}, expected none below 0; "
                "give a covariance, e.g. x.flatten(1).T.cov()"
            )
        self.mean, self.variances, self.axes = mean.double(), values.clamp_min(0), vectors

    @classmethod
    @checked_arguments
    def fit(cls, x: Tensor) -> GaussianPosterior:
        """The posterior of Gaussian data with the mean and covariance of x (N, *event_shape)."""
        check_data("x", x)
        check_count("len(x)", len(x), "the number of data", 2)
        if x.dim() < 2:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (N, *event_shape)")
        return cls(x.double().mean(0), x.double().flatten(1).mT.cov().reshape(x[0].numel(), -1))

    def __call__(self, z: Tensor, log_snr: Tensor) -> Tensor:
        """A draw of x for each readout z (n, *event_shape), in float64, at log SNRs λ (n,)."""
        mean, c, axes = (t.to(z.device) for t in (self.mean, self.variances, self.axes))
        noise = randomness.normal(z.shape, torch.float64, z.device).flatten(1)
        v = (-log_snr).exp().unsqueeze(1)
        along_axes = (z - mean).flatten(1) @ axes
        drawn = c / (c + v) * along_axes + (c * (v / (c + v))).sqrt() * noise
        return mean + (drawn @ axes.mT).reshape(z.shape)


@dataclass(frozen=True, repr=False)
class AuxiliaryUse(InNats):
    """The use of auxiliary variables by a model, in nats per datum, as the module defines it.

    All are means over data with standard errors over them, which include the noise of the estimate.
    Losses are paired, and a positive loss is one of the model without them.
    """

    diffusion: Measured  # ½ ∫ E ‖s_θ - ∇ log q‖²_{g²} ds
    x_alone: Measured  # that of the score averaged over v given x_s
    z_alone: Measured  # that of the score averaged over r given z_s
    loss_x_alone: Measured  # x_alone - diffusion
    loss_z_alone: Measured  # z_alone - diffusion; never above 0, and 0 for denoisers
    start_gap: Measured  # E KL(q(v_0 | x, y_ε) ‖ p(v_0 | x, y_ε)) of the joint decoder
    joint_loss: Measured  # log p(x | y_ε) of Tweedie - bound of JointTweedie
    num_data: int
    num_dims: int  # d, of a datum
    network_calls: int  # of one datum

    def _names(self) -> Sequence[str]:
        return [*TITLES]

    def __repr__(self) -> str:
        title = f"auxiliary variables, by {self.num_data} data of {self.num_dims} dimensions"
        return self._table(f"{title}, mean ± standard error", TITLES)


@torch.no_grad()
@checked_arguments
def auxiliary_use(
    model: DiffusionModel,
    guide: DiffusionGuide,
    x: Tensor,
    *,
    draws: Count = 16,
    posterior: PosteriorDraw | None = None,
    batch_size: Count = 256,
    seed: int = 0,
    progress: bool = False,
) -> AuxiliaryUse:
    """Estimate the use that a trained score, and the start, make of the auxiliary variables.

    Every draw of a datum is one time, more often where Gaussian data would lose most, four states
    there, and one state at ε: six network calls. The decoders that are compared are
    :class:`~pyro_mdm.likelihoods.Tweedie` and :class:`~pyro_mdm.likelihoods.JointTweedie`, whatever
    the model's own.

    Args:
        model: generative program over a linear diffusion with K ≥ 2, the same for all data
            dimensions.
        guide: noising program over the same diffusion.
        x: data in model space, (n, *event_shape), n ≥ 2.
        draws: number of draws for each datum.
        posterior: function that draws data given noised ones, a :data:`PosteriorDraw`; by default
            that of Gaussian data with the mean and covariance of x. For a fit of other data pass
            ``GaussianPosterior.fit(train_x)``.
        batch_size: number of data per network call.
        seed: seed of the noise; the caller's random state stays as it is.
        progress: whether to show a progress bar.

    Returns:
        :class:`AuxiliaryUse`, in nats per datum.

    Raises:
        TypeError: programs that are swapped or of other kinds; a diffusion without closed-form
            kernels, that sees the data, or with a distribution for each data dimension.
        ValueError: K = 1, a single datum, numbers below 1, data that the model refuses.
    """
    check_programs(model, guide)
    model.check_data(x)
    check_data("x", x)
    check_count("len(x)", len(x), "the number of data, whose spread gives the error", 2)
    diffusion = model.diffusion
    needed = (*IN_CLOSED_FORM, Cap.ONE_LEVEL, Cap.DATA_STATES)
    fix = "use a LinearDiffusion for all data dimensions"
    require(diffusion, *needed, who="auxiliary_use", fix=fix)
    if diffusion.num_variables < 2:
        raise ValueError(
            f"{type(diffusion).__name__} has K = {diffusion.num_variables} variable, expected "
            "auxiliary variables beside the data; ask it of a model over CLD or another with K ≥ 2"
        )
    model = model.without_context()
    draw = GaussianPosterior.fit(x) if posterior is None else posterior
    n, total = len(x), torch.zeros(len(TITLES), len(x), dtype=torch.float64)
    density = _loss_density(diffusion, x.double().var(0).mean())
    devices = [x.device] if x.device.type == "cuda" else []
    bar_of_draws = progress_bar(draws * n, "auxiliary use", "draws", shown=progress)
    with evaluating(model), torch.random.fork_rng(devices), bar_of_draws as bar:
        torch.manual_seed(seed)
        for rows in torch.arange(n).split(batch_size):
            chosen, score = x[rows.to(x.device)], model.for_rows(rows).score_function
            for _ in range(draws):
                way = _on_the_way(diffusion, score, chosen, draw, density)
                start = _at_the_start(diffusion, score, chosen)
                total[:, rows] += torch.cat([way, start]).cpu()
                bar.update(len(rows))
    terms = dict(zip(TITLES, map(Measured.from_values, total / draws), strict=True))
    calls = CALLS * draws
    return AuxiliaryUse(**terms, num_data=n, num_dims=model.num_dims, network_calls=calls)


def _loss_density(diffusion: Kernels, variance: Tensor) -> Tensor:
    """The density of fractions of the way from ε to T in equal bins, (BINS,), 1 on average.

    Half of it is uniform, and half is proportional to the loss of Gaussian data of a ``variance``
    without v: most of that loss is in a short part of the way, which even draws would seldom see.
    """
    variance = variance.cpu()
    u = (torch.arange(BINS, dtype=torch.float64, device="cpu") + 0.5) / BINS
    s = diffusion.way.time_at(u)
    marginal = diffusion.marginal(s)
    levels = _log_snr_of_x(marginal), marginal.log_snr
    without, whole = (variance / (1 + variance * level.exp()) for level in levels)
    pace = diffusion.log_snr_rate(s) * diffusion.way.speed(s)
    loss = ((without - whole) * (marginal.log_snr.exp() * pace)).clamp_min(0)
    mean = loss.mean()
    return UNIFORM_SHARE + (1 - UNIFORM_SHARE) * torch.where(mean > 0, loss / mean, 1.0)


def _placed(u: Tensor, density: Tensor) -> tuple[Tensor, Tensor]:
    """Fractions of the way with a density in bins, and weights 1/p, from uniform numbers u (n,)."""
    mass, edges = np.append(0.0, density.cumsum(0) / BINS), np.linspace(0, 1, BINS + 1)
    fraction = torch.from_numpy(np.interp(u, mass, edges))
    return fraction, 1 / density[(BINS * fraction).long().clamp_max(BINS - 1)]


def _on_the_way(
    diffusion: Kernels, score: Score, x: Tensor, posterior: PosteriorDraw, density: Tensor
) -> Tensor:
    """One draw of the terms and losses on the way, (5, n) float64 nats, as ordered in TITLES."""
    u, weight = _placed(randomness.low_discrepancy(len(x), torch.device("cpu")), density)
    s = diffusion.way.time_at(u)
    at = coefficients(diffusion, s, noise=clock_noise(diffusion, s))
    marginal, g2 = at.marginal, at.noise
    start, end = diffusion.way.ends
    W = at.whitener
    scale = weight * (end - start) * 0.5 / diffusion.way.rate_by_clock(s, W, g2)
    scale = scale.to(x.device)
    shape = (len(x), diffusion.num_variables, *x.shape[1:])

    def noise() -> Tensor:
        return randomness.normal(shape, torch.float64, x.device)

    def error(noise: Tensor, start: Tensor) -> Tensor:
        """``h_θ(y) - Σ^{-1} a x`` at y = a x' + L η, where x' is ``start``.

        Of the state as the network receives it: its rounding is then no error of the score.
        """
        y = noised_state(marginal, start.double(), noise).to(x.dtype)
        theta = score.score_at(diffusion, y, at)
        with full_precision(x):
            white = apply_matrix(W, y.double() - outer(marginal.mean, x.double()))
            return theta.double() + apply_matrix(W.mT, white)

    def term(one: Tensor, other: Tensor) -> Tensor:
        with full_precision(x):
            return scale * (one * apply_matrix(g2, other)).flatten(1).sum(1)

    # the first variable of the argument of `rotated` is the noise of z, and the others are r's
    first = noise()
    again = torch.cat([first[:, :1], noise()[:, 1:]], 1)
    of_z = [error(rotated(marginal, noises), x) for noises in (first, again)]
    whole = (term(of_z[0], of_z[0]) + term(of_z[1], of_z[1])) / 2
    apart = of_z[0] - of_z[1]
    loss_z = -0.5 * term(apart, apart)

    # of the noise itself the first variable is that of x_s, since L is lower triangular
    white = rotated(marginal, first)
    slope = marginal.mean[:, 0].sign() * (_log_snr_of_x(marginal).clamp_min(LEAST) / 2).exp()
    slope = with_event_dims(slope, x).to(x.device)
    seen, level = x.double() + white[:, 0] / slope, 2 * slope.abs().log().flatten()
    blind = []
    for _ in range(2):
        other = posterior(seen, level)
        moved = white[:, :1] + (slope * (x.double() - other)).unsqueeze(1)
        blind.append(error(torch.cat([moved, noise()[:, 1:]], 1), other))
    without = term(*blind)
    return torch.stack([whole, without, whole + loss_z, without - whole, loss_z])


def _at_the_start(diffusion: Kernels, score: Score, x: Tensor) -> Tensor:
    """One draw of the start's gap and of the joint decoder's loss, (2, n) float64 nats."""
    noise = randomness.normal((len(x), diffusion.num_variables, *x.shape[1:]), x.dtype, x.device)
    y = outer(diffusion.start.mean, x) + apply_matrix(diffusion.start.scale_tril, noise)
    joint = JointTweedie()(diffusion, score, y, x.dim() - 1)
    bound = joint.log_prob(x).double()
    marginal = torch.distributions.Normal(joint.mean.double(), joint.variance.double().sqrt())
    log_marginal = marginal.log_prob(x.double())
    alone = Tweedie()(diffusion, score, y, x.dim() - 1).log_prob(x).double()
    return torch.stack([log_marginal.flatten(1).sum(1) - bound, alone - bound])
