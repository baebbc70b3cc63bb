r"""A linear diffusion of one variable whose noising paths depend on the data all along.

With y = α z, ``v = e^{-λ}`` and u in [0, 1] the fraction of the way of λ from λ(ε) to λ(T), the
marginals are

    z = m(x, u) + S(x, u) ε,    m = x + Σ_j φ_j(u) n_j(x),    log S² = -λ + Σ_j φ_j(u) r_j(x),

where n and r are outputs of one network, called once for each datum and without the time. φ_j are
Bernstein polynomials that vanish at both ends, and at ε with their derivative. So the start, the
end, the decoder and the prior KL are those of the linear diffusion, and derivatives in time are
exact.

Paths with these marginals and noise ρ dv have the reverse drift

    b = ∂_v m + ∂_v log S (z - m) + ½ ρ (z - m)/S²        per unit of v,

which draws z to two points, the *aims* U and R (:class:`Aims`):

    v b = ½ (z - U) + ½ ρ (z - R),    U = m + 2 ∂_λ m + h' (z - m),    R = z - e^{-h} (z - m),

with h = log S² + λ. For the linear diffusion both are x. The model replaces x by its estimate x̂,
and the bound loses ⅛ e^λ/ρ E‖ΔU + ρ ΔR‖² per unit of λ, which for the linear diffusion is
½ e^λ E‖x - x̂‖².

Given x the paths are Markov, but their mixture over x is not: a path holds more information on x
than its ends do. No network can win back that loss of the bound
(:func:`pyro_mdm.seeing.path_information_gap`).

Source: written for this library. Means that depend on the data are those of Nielsen et al.,
"DiffEnc: Variational Diffusion with a Learned Encoder", ICLR 2024, and Bartosh et al., "Neural
Diffusion Models", ICML 2024; scales and a free volatility those of Bartosh et al., "Neural Flow
Diffusion Models", NeurIPS 2024.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_mdm.diffusions.base import (
    Diffusion,
    Marginal,
    Noised,
    ScoreAndDenoiser,
    Times,
    apply_vector,
)
from pyro_mdm.diffusions.closed import Denoise, GaussianPaths
from pyro_mdm.diffusions.linear import LinearDiffusion
from pyro_mdm.diffusions.matrices import outer
from pyro_mdm.seeing.volatility import Volatility
from pyro_mdm.seeing.wrapped import WrappedDiffusion
from pyro_mdm.support.checks import check_count, check_network, check_number, checked_arguments

__all__ = ["Aims", "DataDrivenDiffusion", "DataPath"]

VIEWS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""The fractions u of the way that :meth:`DataDrivenDiffusion.views` shows."""


class Aims(NamedTuple):
    """The two points that the reverse drift draws z to: v b = ½ (z - flow) + ½ ρ (z - score)."""

    flow: Tensor  # U: the velocity that moves the marginals is (z - U)/2v
    score: Tensor  # R: ∇ log q(z | x) = -(z - R)/v

    def with_noise(self, noise: float) -> Tensor:
        """x̂ = (U + ηR)/(1 + η), with which v b = ½ (1 + η) (z - x̂), for noise η."""
        return (self.flow + noise * self.score) / (1 + noise)


class DataPath(NamedTuple):
    """The marginals of z given n data, at one log SNR each; rates are per unit of λ."""

    mean: Tensor  # m, like the data
    mean_rate: Tensor
    stretch: Tensor  # h = log S² + λ
    stretch_rate: Tensor

    def place(self, log_snr: Tensor, noise: Tensor) -> Tensor:
        """z = m + S ε at log SNRs (n,)."""
        lam = log_snr.to(self.mean.device).reshape(-1, *[1] * (self.mean.dim() - 1))
        return self.mean + ((self.stretch - lam) / 2).exp().to(noise.dtype) * noise

    def aims(self, z: Tensor) -> Aims:
        """The aims at z."""
        rest = z - self.mean
        flow = self.mean + 2 * self.mean_rate + self.stretch_rate * rest
        return Aims(flow, self.mean - torch.expm1(-self.stretch) * rest)


class DrivenPaths(GaussianPaths):
    """Paths whose means and scales the data move all along."""

    diffusion: DataDrivenDiffusion
    drifts_by_data = True

    def noised(
        self, x: Tensor, s: Tensor, noise: Tensor, law: Marginal, whitener: Tensor
    ) -> Noised:
        path = self.diffusion.path(x.double(), law.log_snr)
        z = path.place(law.log_snr, noise[:, 0].double())
        target = self._score(path.aims(z), z, law)
        state = law.mean.to(z).reshape(-1, *[1] * (x.dim() - 1)) * z
        share = self.diffusion.volatility(self.diffusion.fraction(law.log_snr))
        return Noised(state.unsqueeze(1).to(x.dtype), target, share)

    def score_from(self, x: Tensor, y: Tensor, s: Tensor, law: Marginal) -> Tensor:
        z = apply_vector(law.readout, y.double()).to(y.dtype).double()
        return self._score(self.diffusion.aims(x.double(), z, law.log_snr), z, law)

    def aim(self, x: Tensor, z: Tensor, log_snr: Tensor, noise: float) -> Tensor:
        return self.diffusion.aims(x, z, log_snr).with_noise(noise)

    def score_tells(self, noise: float) -> bool:
        return noise == 1.0 and not bool(self.diffusion.volatility.log_knots.any())

    def velocity(self, y: Tensor, s: Tensor, noise: float, ask: ScoreAndDenoiser) -> Tensor:
        if noise == 1.0:  # the process that a score is of
            return super().velocity(y, s, noise, ask)
        law = self.diffusion.marginal(s)
        rest = apply_vector(law.readout, y) - ask.denoise(y, s, noise)
        pull = self.diffusion.log_snr_rate(s) * rest
        return self.diffusion.base.drift(y, s) + (1 + noise) / 2 * outer(law.mean, pull)

    def _score(self, aims: Aims, z: Tensor, marginal: Marginal) -> Tensor:
        """The score s_θ for which the reverse drift is A y - ρ g² s_θ."""
        lam, alpha = marginal.log_snr, marginal.mean[..., 0]
        rho = self.diffusion.volatility(self.diffusion.fraction(lam))
        over = (0.5 * lam.exp() / (alpha * rho), rho)
        event_dim = z.dim() - (lam.dim() or 1)
        scale, rho = (t.to(z).reshape(*t.shape, *[1] * event_dim) for t in over)
        pull = (z - aims.flow) + rho * (z - aims.score)
        value: Tensor = -(scale * pull).unsqueeze(z.dim() - event_dim)
        return value

    def denoising_error(
        self,
        x: Tensor,
        level: Tensor,
        noise: Tensor,
        denoiser: Denoise,
        counted: Tensor | None = None,
    ) -> Tensor:
        """``⅛ e^λ/ρ ‖ΔU + ρ ΔR‖²``, (n,), over all dimensions.

        In training the errors are recorded for ρ (:class:`~pyro_mdm.seeing.volatility.Volatility`);
        this draw still uses the ρ before.
        """
        path = self.diffusion.path(x, level)
        z = path.place(level, noise)
        true, estimated = path.aims(z), self.diffusion.aims(denoiser(z, level), z, level)
        flow, score = (a - b for a, b in zip(true, estimated, strict=True))
        u, weight = self.diffusion.fraction(level), level.exp().to(x)
        rho = self.diffusion.volatility(u).to(x)
        both = flow + rho.reshape(-1, *[1] * (x.dim() - 1)) * score
        value: Tensor = weight / (8 * rho) * both.square().flatten(1).sum(1)
        if self.diffusion.training and torch.is_grad_enabled():
            squares = (weight * t.square().flatten(1).sum(1) for t in (flow, score))
            self.diffusion.volatility.record(u, *(t.detach() for t in squares))
        return value


class DataDrivenDiffusion(WrappedDiffusion):
    """Noising paths with means and scales that depend on the data; see the text of the module.

    Every :class:`~pyro_mdm.Denoiser` serves it, x̂ in the place of x, and so does a score of the raw
    state. Where the network's output is 0, as at the start of this library's networks, it is the
    linear diffusion. ``drift`` is that of the base, and the score has the data's addition to it.

    Args:
        base: linear diffusion with K = 1, whose ends, kernels, clock and prior it has.
        network: module called once with data, (n, C, *spatial), and zeros, (n,), in place of log
            SNR; it returns (n, :meth:`outputs`·C, *spatial), means before scales, each
            (degree - 2)·C.
        means: bound c on n_j = c tanh(output / c), in units of the data: means move by at most c.
            0: they do not move.
        scales: bound c on r_j, likewise: S² changes by a factor of at most e^c. 0: not at all.
        degree: degree of the polynomials, at least 3.

    Raises:
        TypeError: a base of another kind.
        ValueError: a base of more variables, ranges below 0 or both 0, a degree below 3, a network
            output of another shape.

    Example:
        >>> from pyro_mdm import VPSDE
        >>> from pyro_mdm.networks import MLP
        >>> network = MLP(2, 32, 1, out_features=2 * DataDrivenDiffusion.outputs())
        >>> diffusion = DataDrivenDiffusion(VPSDE(max_log_snr=9.0), network)
        >>> diffusion.views(torch.randn(4, 2))["mean"].shape
        torch.Size([5, 4, 2])
    """

    _networks = ("network",)
    _kind_of_paths = DrivenPaths

    @checked_arguments
    def __init__(
        self,
        base: LinearDiffusion,
        network: nn.Module,
        *,
        means: float = 1.0,
        scales: float = 1.0,
        degree: int = 5,
    ) -> None:
        super().__init__(base)
        if base.num_variables != 1:
            raise ValueError(
                f"base is {type(base).__name__} of {base.num_variables} variables, expected one: "
                "noise must reach all that the drift moves; e.g. VPSDE(max_log_snr=9.0)"
            )
        check_network("network", network, Diffusion)
        self.means = _range("means", means)
        self.scales = _range("scales", scales)
        if not (self.means or self.scales):
            raise ValueError("means and scales are both 0, and data drive nothing; raise one")
        check_count("degree", degree, "that of the polynomials of time", 3)
        self.degree = degree
        self.network = network
        self.volatility = Volatility()

    @staticmethod
    def outputs(*, means: bool = True, scales: bool = True, degree: int = 5) -> int:
        """The number of network outputs for each data dimension."""
        return (means + scales) * (degree - 2)

    # -- the way of the marginals ------------------------------------------------------------------

    def fraction(self, log_snr: Tensor) -> Tensor:
        """The fraction u of the way of λ from λ(ε) to λ(T), in [0, 1], like λ."""
        high, low = self._ends()
        return (high - log_snr) / (high - low)

    def _ends(self) -> tuple[Tensor, Tensor]:
        return self.start_log_snr, self.terminal_log_snr

    def path(self, x: Tensor, log_snr: Tensor) -> DataPath:
        """The marginals of data x (n, *event_shape) at log SNRs (n,)."""
        high, low = self._ends()
        blend, slope = _bernstein(self.fraction(log_snr), self.degree)
        slope = slope / (low - high)
        means, scales = self._moved(x)

        def mixed(weight: Tensor, coefficients: Tensor) -> Tensor:
            return torch.einsum("nj,nj...->n...", weight.to(x), coefficients)

        return DataPath(
            x + mixed(blend, means),
            mixed(slope, means),
            mixed(blend, scales),
            mixed(slope, scales),
        )

    def _moved(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """n_j and r_j, each (n, J, *event_shape); one that is switched off is 0, broadcastable."""
        dtype = next((p.dtype for p in self.network.parameters()), x.dtype)
        out = self.network(x.to(dtype), x.new_zeros(len(x), dtype=dtype))
        ranges = [self.means, self.scales]
        J = self.degree - 2
        expected = (len(x), sum(map(bool, ranges)) * J * x.shape[1], *x.shape[2:])
        if out.shape != expected:
            raise ValueError(
                f"{type(self.network).__name__} returned {tuple(out.shape)} for data "
                f"{tuple(x.shape)}, expected {expected}; see DataDrivenDiffusion.outputs"
            )
        outputs = iter(out.to(x.dtype).unflatten(1, (-1, J, x.shape[1])).unbind(1))
        still = x.new_zeros(len(x), J, *[1] * (x.dim() - 1))
        means, scales = (c * torch.tanh(next(outputs) / c) if c else still for c in ranges)
        return means, scales

    def aims(self, x: Tensor, z: Tensor, log_snr: Tensor) -> Aims:
        """The aims at z of a path from x.

        Args:
            x: data, (*batch, *event_shape).
            z: readouts, (*batch, *event_shape).
            log_snr: log SNR, (*batch), or a number for one batch dimension.
        """
        batch_dim = log_snr.dim() or 1
        batch, event = x.shape[:batch_dim], x.shape[batch_dim:]
        path = self.path(x.reshape(-1, *event), log_snr.expand(batch).reshape(-1))
        flat = path.aims(z.reshape(-1, *event))
        return Aims(*(t.reshape(x.shape) for t in flat))

    @torch.no_grad()
    def views(self, x: Tensor) -> dict[str, Tensor]:
        """The means and log S² − those of the base, at five log SNRs.

        Args:
            x: data in model space, (n, *event_shape).
        """
        high, low = self._ends()
        paths = [self.path(x, (high + u * (low - high)).expand(len(x))) for u in VIEWS]
        shown = {"mean": (self.means, [p.mean - x for p in paths])}
        shown["scale"] = (self.scales, [p.stretch.expand_as(x) for p in paths])
        return {name: torch.stack(stages) for name, (limit, stages) in shown.items() if limit}

    # -- targets of scores -------------------------------------------------------------------------

    def volatility_at(self, s: Times) -> Tensor:
        """The volatility ρ(s), like s."""
        rho: Tensor = self.volatility(self.fraction(self.marginal(s).log_snr))
        return rho

    # -- the generative process --------------------------------------------------------------------

    def noise_covariance(self, s: Times) -> Tensor:
        """ρ g² (*s.shape, 1, 1)."""
        return self.volatility_at(s)[..., None, None] * self.base.noise_covariance(s)

    def dispersion(self, y: Tensor | None, s: Times) -> Tensor:
        """√ρ G (*s.shape, 1, 1)."""
        G = self.base.dispersion(None, s)
        return self.volatility_at(s).sqrt()[..., None, None] * G

    def settings(self) -> dict[str, object]:
        arguments = {"means": self.means, "scales": self.scales, "degree": self.degree}
        return super().settings() | arguments

    def extra_repr(self) -> str:
        return f"means={self.means:g}, scales={self.scales:g}, degree={self.degree}"


def _bernstein(u: Tensor, degree: int) -> tuple[Tensor, Tensor]:
    """``φ_j(u) = C(n, j) u^j (1-u)^{n-j}`` for j = 2 … n - 1, and the derivatives, (…, n - 2)."""
    j = torch.arange(2, degree, dtype=torch.float64, device=u.device)
    choose = torch.tensor([math.comb(degree, i) for i in range(2, degree)]).to(j)
    u = u.unsqueeze(-1)
    early, late = u ** (j - 1), (1 - u) ** (degree - j - 1)
    slope = j * (1 - u) - (degree - j) * u
    return choose * early * u * late * (1 - u), choose * early * late * slope


def _range(name: str, value: float) -> float:
    expected = "a range, e.g. 1.0, or 0 for none"
    if not check_number(name, value, expected) >= 0:
        raise ValueError(f"{name} is {value}, expected {expected}")
    return float(value)
