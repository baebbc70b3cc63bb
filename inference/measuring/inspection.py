r"""A table of the properties of a diffusion in closed form.

Definitions, with A_0 = -(Q + D) Σ_∞^{-1} the drift per unit of the clock b(s) = ∫_0^s β:

- *prior KL* at s: mean of KL(q(y_s | x) ‖ N(0, Σ_∞)) over test data. It is I(x; y_s), which the
  diffusion term would cost if the path went on, plus the *mismatch* KL(q(y_s) ‖ N(0, Σ_∞)), which
  is lost. Both vanish with a longer clock; the bound gains the mismatch alone. I is that of
  Gaussian data of the same covariance C, ½ log det(1 + SNR C): right to second order in SNR.
- *relaxation time*: 1 / min |Re μ| over the eigenvalues μ of A_0, in units of the clock, and the s
  at which b(s) reaches it and the slowest mode has decayed to e⁻¹.
- *mixing time*: the first s at which the prior KL falls to 0.001 bits/dim.
- *damping* is that of the slowest mode: underdamped if μ is complex, critical if two modes meet in
  one (a double eigenvalue with a single eigenvector), else overdamped. Its *quality* is
  |μ| / (2 |Re μ|) for a complex pair and √(μ_1 μ_2) / |μ_1 + μ_2| for the two slowest real modes:
  ½ at critical damping, less above it, more below it.
- *condition numbers* are of Σ(s) = Cov(y_s | x), as it is and as a correlation matrix.
- *information of v* at s: I(x; v_s | x_s), that of the auxiliary variables on the data beyond x_s,
  for Gaussian data of the same covariance (:func:`pyro_mdm.auxiliary.auxiliary_information`), and
  the difference of log SNR of the whole state and of x_s alone.
- *amplification*: the growth of rounding errors in the factors of Σ; 1 keeps 15.7 digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Tensor

from inference.folders.loading import load_trained
from inference.folders.output import aligned
from inference.settings import diffusion as made
from inference.settings.diffusion import LEARNED_MIN_LOG_SNR
from inference.settings.options import Guide
from models import Problem
from models.kinds import kind_of
from pyro_mdm import LinearDiffusion
from pyro_mdm.auxiliary import GaussianPosterior, auxiliary_information, auxiliary_use
from pyro_mdm.diffusions import kernels
from pyro_mdm.diffusions.clocks import log_snr_times
from pyro_mdm.diffusions.ends import check_precision, factorization
from pyro_mdm.diffusions.linear import frozen
from pyro_mdm.diffusions.matrices import MAX_AMPLIFICATION
from pyro_mdm.paths.base import prior_kl
from pyro_mdm.support.measured import Measured

CUT = 1e-3  # of T: where the noising starts in most published code, whatever the log SNR there
MIXED = 1e-3  # bits/dim
FORMING = 5.0  # images form between log SNR -5 and 5
POINTS = 65  # of [ε, T], equally spaced in log SNR
STEPS = 256  # of the ancestral sampler, as inference.sample uses it
EPSILON_32 = 2.0**-23  # relative spacing of float32 numbers
EPSILON_64 = 2.0**-52  # and of float64 numbers

T = TypeVar("T")


@dataclass
class Inspection:
    """Results of :func:`look`; None where float64 does not suffice, with reasons in ``errors``."""

    name: str
    num_variables: int
    rank: int  # of D
    clock: float | None = None  # b(T)
    start_time: float | None = None  # ε
    start_log_snr: float | None = None  # λ(ε)
    cut_log_snr: float | None = None  # λ(0.001 T)
    terminal_log_snr: float | None = None  # λ(T)
    prior_kl: tuple[float, float] | None = None  # mean, standard error over data; bits/dim
    mismatch: float | None = None  # KL(q(y_T) ‖ π), bits/dim
    eigenvalues: list[complex] = field(default_factory=list)  # of A_0, slowest first
    damping: str = ""
    quality: float | None = None
    relaxation: float | None = None  # in units of the clock
    relaxation_time: float | None = None  # s; inf if not by T
    mixing_time: float | None = None  # s; inf if not by T
    condition: dict[str, tuple[float, float]] | None = None  # raw, correlation
    amplification: float | None = None
    step_amplification: float | None = None  # of the transitions between 256 steps
    auxiliary: dict[str, tuple[float, float]] | None = None  # by v: bits/dim, difference of log SNR
    forming: float | None = None  # share of [0, T] with log SNR in [-5, 5]
    errors: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    def attempt(self, compute: Callable[[], T]) -> T | None:
        """The result of ``compute``; None where float64 does not suffice, with the reason kept."""
        try:
            return compute()
        except (kernels.KernelPrecisionError, ValueError) as error:
            if str(error) not in self.errors:
                self.errors.append(str(error))
            return None


@torch.no_grad()
def look(name: str, diffusion: LinearDiffusion, x: Tensor) -> Inspection:
    """The inspection of a diffusion on data x (n, *event_shape), n ≥ 2, in model space.

    For a diffusion by dimension, of its first block. Kernels that float64 cannot hold, or a start
    that is never reached, raise nothing: ``errors`` tells.
    """
    x = x.double()
    if kind_of(diffusion).by_dimension:
        name = f"{name}, first block"
    diffusion = cast(LinearDiffusion, diffusion.reference)
    middle = frozen(diffusion)
    rank = int(torch.linalg.matrix_rank(middle.D, hermitian=True))
    seen = Inspection(name, diffusion.num_variables, rank)
    mu = torch.linalg.eigvals(middle.unit_drift)
    mu = mu[torch.argsort(-mu.real, stable=True)]
    seen.eigenvalues = [complex(value) for value in mu.tolist()]
    seen.damping, seen.quality = _damping(middle.unit_drift)
    slowest = -seen.eigenvalues[0].real  # 0 but for rounding where a mode never relaxes
    seen.relaxation = 1 / slowest if slowest > 1e-10 else math.inf
    _look_at_ends(seen, diffusion)
    if seen.start_time is not None:
        _look_between(seen, diffusion, x, seen.start_time)
    _advise(seen, diffusion, x)
    return seen


def _look_at_ends(seen: Inspection, diffusion: LinearDiffusion) -> None:
    """Fill in the clock, and log SNR at both ends."""
    end, attempt = diffusion.horizon, seen.attempt
    seen.clock = attempt(lambda: diffusion.clock(end).item())
    seen.start_log_snr = diffusion.max_log_snr
    seen.start_time = attempt(lambda: diffusion.start_time.item())
    seen.cut_log_snr = attempt(lambda: diffusion.log_snr(CUT * end).item())
    seen.terminal_log_snr = attempt(lambda: diffusion.log_snr(end).item())
    if seen.clock is not None and seen.relaxation is not None:
        seen.relaxation_time = time_of_clock(diffusion, seen.relaxation)


def _look_between(seen: Inspection, diffusion: LinearDiffusion, x: Tensor, start: float) -> None:
    """Fill in the prior KL, the mixing time and the effects of rounding."""
    end, d, attempt = diffusion.horizon, x[0].numel(), seen.attempt

    def prior() -> tuple[float, float]:
        bits = prior_kl(diffusion, x, x.dim() - 1) / (d * math.log(2))
        return Measured.from_values(bits)

    seen.prior_kl = attempt(prior)
    if seen.prior_kl is not None and seen.terminal_log_snr is not None:
        seen.mismatch = seen.prior_kl[0] - _information(x, seen.terminal_log_snr)
    seen.mixing_time = attempt(
        lambda: _first(lambda s: prior_kl_curve(diffusion, x, s).item() <= MIXED, start, end)
    )
    seen.condition = attempt(lambda: _conditions(diffusion))
    if diffusion.num_variables > 1:
        seen.auxiliary = attempt(lambda: _auxiliary(diffusion, x))
    seen.amplification = attempt(lambda: _amplification(diffusion))
    seen.step_amplification = attempt(lambda: _step_amplification(diffusion))
    seen.forming = attempt(lambda: _forming(diffusion))


def prior_kl_curve(diffusion: LinearDiffusion, x: Tensor, s: float | Tensor) -> Tensor:
    """The mean of KL(q(y_s | x) ‖ N(0, Σ_π)) over x (n, *event_shape), bits/dim, like s."""
    marginal, prior = diffusion.marginal(s), diffusion.prior_covariance
    inverse = torch.linalg.inv(prior)
    trace = (inverse @ marginal.covariance).diagonal(dim1=-2, dim2=-1).sum(-1)
    log_det = torch.logdet(prior) - marginal.log_det
    a = marginal.mean
    quadratic = torch.einsum("...i,ij,...j->...", a, inverse, a) * x.double().square().mean()
    return 0.5 * (trace - diffusion.num_variables + log_det + quadratic) / math.log(2)


def _information(x: Tensor, log_snr: float) -> float:
    """I(x; z) in bits/dim for Gaussian data of the covariance of x (n, *event_shape)."""
    values = _variances(x)
    return 0.5 * (math.exp(log_snr) * values).log1p().mean().item() / math.log(2)


def _variances(x: Tensor) -> Tensor:
    """The variances of x (n, *event_shape) along the axes of its covariance, (d,)."""
    flat = x.flatten(1) - x.flatten(1).mean(0)
    values = torch.linalg.svdvals(flat).square() / len(x)
    return torch.nn.functional.pad(values, (0, flat.shape[1] - len(values)))


def _auxiliary(diffusion: LinearDiffusion, x: Tensor) -> dict[str, tuple[float, float]]:
    """What v tells beyond x_s, in bits/dim and in log SNR: at ε, half way in λ, T, and the most."""
    s = log_snr_times(diffusion, POINTS)
    information = auxiliary_information(diffusion, s, _variances(x))
    bits, apart = information.nats / math.log(2), information.log_snr - information.log_snr_of_x
    at = {"ε": 0, "mid": POINTS // 2, "T": -1, "most": int(bits.argmax())}
    return {where: (bits[i].item(), apart[i].item()) for where, i in at.items()}


def _damping(A: Tensor) -> tuple[str, float | None]:
    """The regime of the slowest mode and its quality, as the module defines them."""
    mu, vectors = torch.linalg.eig(A)
    if mu.real.max() > -1e-10:
        return "none", None  # it never relaxes
    slow = mu.real > mu.real.max() * (1 + 1e-6)  # of equally slow modes the fastest to turn
    first = torch.where(slow, mu.imag.abs(), -1.0).argmax()
    order = torch.argsort(-mu.real, stable=True)
    order = torch.cat([first[None], order[order != first]])
    mu, vectors = mu[order], vectors[:, order]
    # a double eigenvalue splits by √rounding, a triple one by its cube root
    near = (mu - mu[0]).abs() < 1e-4 * mu[0].abs()
    if int(near.sum()) > 1:
        angles = torch.linalg.svdvals(vectors[:, near])
        if (angles[-1] / angles[0]).item() < 1e-3:
            return "critical", 0.5
    # below 1e-8 an imaginary part is rounding of a real eigenvalue
    if abs(mu[0].imag.item()) > 1e-8 * abs(mu[0].item()):
        return "underdamped", (mu[0].abs() / (2 * mu[0].real.abs())).item()
    real = mu.real[mu.imag.abs() <= 1e-8 * mu.abs()]
    if len(real) < 2:
        return "overdamped", None
    return "overdamped", ((real[0] * real[1]).sqrt() / (real[0] + real[1]).abs()).item()


def _first(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The first time in [low, high] from which on a condition holds; inf if never."""
    if low > 0 and holds(low):
        return low
    if not holds(high):
        return math.inf
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def time_of_clock(diffusion: LinearDiffusion, tau: float) -> float:
    """The time at which the clock reaches ``tau``; inf if not by T."""
    return _first(lambda s: diffusion.clock(s).item() >= tau, 0.0, diffusion.horizon)


def _conditions(diffusion: LinearDiffusion) -> dict[str, tuple[float, float]]:
    """Condition numbers of Σ, raw and as a correlation: at ε, half way in λ, T, and the largest.

    From singular values of the root L, which keep digits that eigenvalues of Σ lose.
    """
    marginal = diffusion.marginal(log_snr_times(diffusion, POINTS))
    L = marginal.scale_tril
    rows = marginal.covariance.diagonal(dim1=-2, dim2=-1).sqrt().unsqueeze(-1)
    both = torch.stack([torch.linalg.cond(L).square(), torch.linalg.cond(L / rows).square()], -1)
    at = {"ε": both[0], "mid": both[POINTS // 2], "T": both[-1], "worst": both.amax(0)}
    return {where: (raw.item(), scaled.item()) for where, (raw, scaled) in at.items()}


def _amplification(diffusion: LinearDiffusion) -> float:
    _, _, factor = factorization(diffusion, diffusion.clock(log_snr_times(diffusion, POINTS)))
    return factor.amplification.max().item()


def _step_amplification(diffusion: LinearDiffusion) -> float:
    s = log_snr_times(diffusion, STEPS + 1)
    tau = diffusion.clock(s).diff()
    growth = diffusion.propagator.root(diffusion.clock(s[:-1]), tau).growth
    check_precision(diffusion, growth, tau, f"a step of {STEPS} (the ancestral sampler)")
    return growth.max().item()


def _forming(diffusion: LinearDiffusion) -> float:
    last = diffusion.terminal_log_snr.item()
    ends = torch.tensor([max(FORMING, last), max(-FORMING, last)], dtype=torch.float64)
    s = diffusion.time_at_log_snr(ends)
    return (s[1] - s[0]).item() / diffusion.horizon


def _advise(seen: Inspection, diffusion: LinearDiffusion, x: Tensor) -> None:
    """Add warnings about a diffusion, with advice."""
    say = seen.advice.append
    if seen.mismatch is not None and seen.mismatch > MIXED:
        say(
            f"the prior's mismatch costs {seen.mismatch:.2g} bits/dim: raise β, or set "
            f"--min_log_snr {LEARNED_MIN_LOG_SNR:g} (now {seen.terminal_log_snr:.3g})"
        )
    resolved = -2 * math.log(EPSILON_32) - x.square().mean().log().item()
    if diffusion.max_log_snr > resolved:
        say(
            f"single precision resolves these data's noise to log SNR {resolved:.0f}, but ε is at "
            f"{diffusion.max_log_snr:.3g}: lower --max_log_snr, or use a double-precision network"
        )


# -- what is inspected -----------------------------------------------------------------------------


def inspected_diffusion(asked: Guide, problem: Problem) -> LinearDiffusion:
    """A diffusion with the given ends, or its own."""
    name, high, low = asked.guide, asked.max_log_snr, asked.min_log_snr
    if name.startswith("run:"):
        for option, value in (("max_log_snr", high), ("min_log_snr", low)):
            if value is not None:
                raise ValueError(
                    f"--{option} is {value:g}, but {name} ended with its own; leave it out"
                )
        diffusion = load_trained(Path(name.removeprefix("run:")))[1].model.diffusion
    else:
        guide = asked if name == "learned" else Guide(guide=name, min_log_snr=low)
        if name == "learned" and low is None:
            guide = replace(guide, min_log_snr=LEARNED_MIN_LOG_SNR)
        guide = replace(guide, max_log_snr=problem.max_log_snr if high is None else high)
        diffusion = made.build_diffusion(guide, event_shape=problem.event_shape)
        made.check_ends(asked, diffusion)
        made.give_learned_end(diffusion)
    if kind_of(diffusion).simulated:
        raise ValueError(
            f"{name} is {type(diffusion).__name__}, expected a LinearDiffusion, since all that is "
            "shown here is computed in closed form. See its paths by "
            "pyro_mdm.plots.figures.paths_figure, or TensorBoard of a run"
        )
    return cast(LinearDiffusion, diffusion)


def use_of_auxiliaries(name: str, draws: int) -> str:
    """What a run's network makes of the auxiliary variables, on the run's own test data."""
    _, (problem, model, guide), _ = load_trained(Path(name.removeprefix("run:")))
    if model.diffusion.num_variables < 2:
        return f"{name}: K = 1, without auxiliary variables"
    generator = torch.Generator().manual_seed(0)
    law = GaussianPosterior.fit(problem.to_model_space(problem.train, generator))
    x = problem.to_model_space(problem.test, generator)
    return f"{name}: {auxiliary_use(model, guide, x, draws=draws, posterior=law, progress=True)}"


# -- the table -------------------------------------------------------------------------------------


def table(seen: Sequence[Inspection]) -> str:
    """A table with a column for each inspection, units in the first, then errors and advice."""

    def number(value: float | None, digits: int = 4) -> str:
        if value is None:
            return "–"
        return "not by T" if math.isinf(value) else f"{value:.{digits}g}"

    def pair(value: tuple[float, float] | None) -> str:
        return "–" if value is None else f"{value[0]:.3g} ± {value[1]:.1g}"

    def share(f: Inspection) -> str:
        if f.mismatch is None or f.prior_kl is None:
            return "–"
        return f"{f.mismatch:.3g} ({f.mismatch / f.prior_kl[0]:.0%})"

    def growth(value: float | None) -> str:
        return "–" if value is None else f"{value:.3g}, {-math.log10(value * EPSILON_64):.1f}"

    def condition(f: Inspection, where: str) -> str:
        return "–" if f.condition is None else ", ".join(f"{c:.3g}" for c in f.condition[where])

    def auxiliary(f: Inspection, where: str) -> str:
        return (
            "–"
            if f.auxiliary is None
            else ", ".join(f"{value:.3g}" for value in f.auxiliary[where])
        )

    def quality(f: Inspection) -> str:
        return f.damping + ("" if f.quality is None else f", {f.quality:.3g}")

    rows: list[tuple[str, Callable[[Inspection], str]]] = [
        ("variables K, rank of D", lambda f: f"{f.num_variables}, {f.rank}"),
        ("clock b(T)", lambda f: number(f.clock)),
        ("start time ε", lambda f: number(f.start_time)),
        ("log SNR at ε", lambda f: number(f.start_log_snr)),
        (f"log SNR at s = {CUT} T", lambda f: number(f.cut_log_snr)),
        ("log SNR at T", lambda f: number(f.terminal_log_snr)),
        (f"share of [0, T] at |log SNR| < {FORMING:g}", lambda f: number(f.forming, 3)),
        ("prior KL, bits/dim", lambda f: pair(f.prior_kl)),
        ("  mismatch, which a longer clock avoids", share),
        (f"mixing time, s: prior KL ≤ {MIXED}", lambda f: number(f.mixing_time)),
        ("relaxation time, s: b(s) = next row", lambda f: number(f.relaxation_time)),
        ("  1/min|Re μ|, units of the clock", lambda f: number(f.relaxation)),
        ("eigenvalues μ of A_0 (unit clock)", lambda f: ", ".join(_complex(f.eigenvalues))),
        ("damping of the slowest, quality", quality),
        ("cond Σ, raw and as correlations, at ε", lambda f: condition(f, "ε")),
        ("  half way in log SNR", lambda f: condition(f, "mid")),
        ("  at T", lambda f: condition(f, "T")),
        ("  at the worst s", lambda f: condition(f, "worst")),
        ("information of v beyond x_s, bits/dim and log SNR, at ε", lambda f: auxiliary(f, "ε")),
        ("  half way in log SNR", lambda f: auxiliary(f, "mid")),
        ("  at T", lambda f: auxiliary(f, "T")),
        ("  at the s where it is largest", lambda f: auxiliary(f, "most")),
        ("rounding grows by, digits left", lambda f: growth(f.amplification)),
        (f"  in steps of {STEPS} (ancestral)", lambda f: growth(f.step_amplification)),
    ]
    cells = [["", *(f.name for f in seen)]]
    cells += [[label, *(cell(f) for f in seen)] for label, cell in rows]
    lines = [aligned(cells)]
    lines.append(f"digits of 15.7; growth above {MAX_AMPLIFICATION:.0e} is refused")
    for f in seen:
        lines += [f"{f.name}: {error}" for error in f.errors]
        lines += [f"{f.name}: {text}" for text in f.advice]
    return "\n".join(lines)


def _complex(values: Sequence[complex]) -> list[str]:
    """Complex numbers as text: conjugate pairs once, as -0.5±1i, multiples as -1 (×2)."""
    texts: list[str] = []
    for value in values:
        scale = 1e-6 * abs(value)
        if abs(value.imag) <= max(scale, 1e-4 * abs(value) * any(_close(value, values))):
            texts.append(f"{value.real:.3g}")
        elif value.imag > 0:
            texts.append(f"{value.real:.3g}±{value.imag:.3g}i")
    unique = list(dict.fromkeys(texts))
    return [t if texts.count(t) == 1 else f"{t} (×{texts.count(t)})" for t in unique]


def _close(value: complex, values: Sequence[complex]) -> list[bool]:
    return [0 < abs(value - other) < 1e-4 * abs(value) for other in values]
