"""The bound of programs on stored data, in bits/dim, as programs report it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypedDict, TypeVar

import torch
from torch import Tensor

from inference.settings.plan import Programs
from models.base import SCORES, Assembly, Part
from models.kinds import kind_of
from pyro_mdm import bits_per_dim
from pyro_mdm.evaluation.comparison import evidence_lower_bound
from pyro_mdm.evaluation.estimates import Estimate, Weighted
from pyro_mdm.scores.denoiser import DenoiserScore
from pyro_mdm.seeing.path_information import path_information_gap
from pyro_mdm.simulated.evaluation import step_size_bias
from pyro_mdm.support.checks import tensor_device
from pyro_mdm.support.measured import ALL_TERMS, TERMS, student_factor
from pyro_mdm.support.splits import spread

if TYPE_CHECKING:
    from typing_extensions import Unpack

Stored = TypeVar("Stored", Tensor, Part, Tensor | Part)
"""Stored data, alone or with their contexts."""

BIAS_DATA, BIAS_DRAWS = 512, 4
"""The most data, and draws of each, for the bias of the simulation's step."""

LARGE_BIAS = 0.1
"""The bias of the step above which there is a warning, bits/dim."""


class Calls(TypedDict, total=False):
    """The options of network calls for a bound, as in :func:`pyro_mdm.evaluation.compare`."""

    draws: int
    batch_size: int
    progress: bool
    distributed: bool


class BoundOptions(Calls, total=False):
    """The options of a bound: its network calls and its precision."""

    half_width: float | None


@dataclass(frozen=True)
class StepBias:
    """The change of the bound when the simulation's step is halved, bits/dim, at the same paths."""

    step_size: float
    change: float
    standard_error: float

    def __str__(self) -> str:
        text = (
            f"step of the simulation: {self.step_size:.3g}; half of it gives {self.change:+.4f} ± "
            f"{self.standard_error:.4f} bits/dim at the same paths (not part of the ± below)"
        )
        if abs(self.change) > max(LARGE_BIAS, 4 * self.standard_error):
            text += (
                "\nwarning: the step makes the bound wrong by more than that; train with a smaller "
                "--step_size, or with a drift that changes less within a step"
            )
        return text


@dataclass(frozen=True)
class RunBound:
    """The bound on a part of the data by term, each (value, standard error) in bits/dim.

    ``bits_per_dim`` is the sum of the other terms. For dequantized data the reconstruction includes
    the log-determinant and the levels.
    """

    bits_per_dim: tuple[float, float]
    reconstruction: tuple[float, float]
    prior_kl: tuple[float, float]
    diffusion: tuple[float, float]
    num_data: int
    monte_carlo_error: float  # of bits_per_dim, by the noise alone
    log_snr_edges: list[float]
    diffusion_by_log_snr: list[float]  # the part of ``diffusion`` in each interval
    diffusion_by_log_snr_error: list[float]
    probe_error: float = 0.0  # the share of Hutchinson's probes in it; NaN for a single one
    step_bias: StepBias | None = None  # for a simulation, where it was measured
    context: tuple[float, float] = (0.0, 0.0)  # the KL of a latent context, where there is one

    @property
    def terms(self) -> dict[str, tuple[float, float]]:
        """The value and standard error of each term, by name."""
        names = ALL_TERMS if self.context[0] else TERMS
        return {name: getattr(self, name) for name in ("bits_per_dim", *names)}

    @property
    def by_log_snr(self) -> tuple[list[float], list[float], list[float]]:
        """The diffusion term by interval of log SNR: edges, values, standard errors."""
        return self.log_snr_edges, self.diffusion_by_log_snr, self.diffusion_by_log_snr_error

    @property
    def columns(self) -> dict[str, float]:
        """The bound as columns of metrics.csv."""
        values = {name: value for name, (value, _) in self.terms.items()}
        errors = {f"{name}_standard_error": error for name, (_, error) in self.terms.items()}
        return values | errors

    def as_json(self) -> dict[str, object]:
        """The bound as in results.json."""
        named = {k: {"value": v, "standard_error": e} for k, (v, e) in self.terms.items()}
        return asdict(self) | named

    def __str__(self) -> str:
        context = f", context {self.context[0]:.3f}" if self.context[0] else ""
        return (
            f"bits/dim {self.bits_per_dim[0]:.3f} ± {self.bits_per_dim[1]:.3f} "
            f"(reconstruction {self.reconstruction[0]:.3f}, prior KL {self.prior_kl[0]:.3f}, "
            f"diffusion {self.diffusion[0]:.3f}{context})"
        )


def measure(
    programs: Programs, data: Tensor | Part, *, seed: int = 0, **options: Unpack[BoundOptions]
) -> RunBound:
    """The bound on stored ``data`` (n, *event_shape), given their contexts if any, in bits/dim.

    Args:
        seed: the seed of all noise, dequantization included.
        options: draws, batch_size, …, as for :func:`pyro_mdm.evaluation.log_likelihood`.
    """
    estimate, log_det = estimated(programs, data, seed=seed, **options)
    return bound_of(estimate, log_det, programs.problem.dequantized_levels)


def estimated(
    programs: Programs, data: Tensor | Part, *, seed: int = 0, **options: Unpack[BoundOptions]
) -> tuple[Estimate, Tensor]:
    """The bound on each datum in nats, and log-determinants (n,); see :func:`measure`."""
    _, model, guide = given_contexts(programs, data)
    x, log_det = in_model_space(programs, data, seed)
    denoiser = baseline([programs])
    return evidence_lower_bound(model, guide, x, seed=seed, baseline=denoiser, **options), log_det


def some(data: Stored, most: int = 256) -> Stored:
    """At most ``most`` data, spread evenly, since neighbours in a data set are often alike."""
    return data if len(data) <= most else data[spread(len(data), most)]


def given_contexts(programs: Programs, data: Tensor | Part) -> Programs:
    """The programs given the contexts of data, if they have any."""
    return programs.given(data.context) if isinstance(data, Part) else programs


def in_model_space(programs: Programs, data: Tensor | Part, seed: int) -> tuple[Tensor, Tensor]:
    """Stored data as x on the model's device, and the log-determinants."""
    stored = data.data if isinstance(data, Part) else data
    x, log_det = programs.problem.transform(stored, torch.Generator().manual_seed(seed))
    return x.to(tensor_device(programs.model.score_function)), log_det


def baseline(entries: Sequence[Programs]) -> DenoiserScore | None:
    """A denoiser as baseline for programs in closed form; None where they have their own."""
    closed = [p for p in entries if not kind_of(p.model.diffusion).simulated]
    if not closed or any(isinstance(p.model.score_function, DenoiserScore) for p in closed):
        return None
    problem, diffusion = closed[0].problem, closed[0].model.diffusion
    pixels = kind_of(diffusion).coordinates is None
    levels = "discrete" in problem.scores and pixels
    name = "discrete" if levels else "denoiser"
    with torch.random.fork_rng():  # its network, untrained, is not used
        score = Assembly(problem, diffusion).score(SCORES[name])
    score = score.to(tensor_device(closed[0].model.score_function))
    return score if isinstance(score, DenoiserScore) else None


def in_bits(
    estimate: Estimate | Weighted, log_det: Tensor | float, levels: int | None
) -> tuple[float, float]:
    """A bound in bits/dim and its standard error over the data.

    Args:
        log_det: log|det ∂x/∂w| (n,) of the data as transformed, in nats.
        levels: the number of levels of dequantized data, else None.
    """
    d, n = estimate.num_dims, estimate.num_data
    bits = bits_per_dim(estimate.per_datum, d, log_det=log_det, num_levels=levels)
    if not isinstance(log_det, Tensor):
        return float(bits.mean()), estimate.bits_per_dim_error
    # the log-determinant varies with the datum, which the estimate's own error leaves out; its
    # covariance with the bound comes from data that were drawn, as others have a prediction alone
    drawn = estimate.per_datum_error.isfinite()
    drawn = drawn if bool(drawn.any()) else ~drawn  # by one weight each: drawn, of unknown error
    both = torch.stack([estimate.per_datum[drawn], log_det.double().cpu()[drawn]])
    factor = float(student_factor(both.shape[1] - 1)) / (d * math.log(2))
    more = float(log_det.double().var() + 2 * both.cov()[0, 1]) * factor**2 / n
    return float(bits.mean()), math.sqrt(max(estimate.bits_per_dim_error**2 + more, 0.0))


def bound_of(estimate: Estimate, log_det: Tensor | float, levels: int | None) -> RunBound:
    """An estimate in bits/dim; arguments as for :func:`in_bits`."""
    unit = estimate.num_dims * math.log(2)
    value, error = in_bits(estimate, log_det, levels)
    prior_kl, diffusion, context = (
        (t / unit, e / unit) for t, e in (estimate.prior_kl, estimate.diffusion, estimate.context)
    )
    # the log-determinant varies with the datum: its error is in the whole, not known for this part
    part_error = math.nan if levels else estimate.reconstruction[1] / unit
    width = estimate.log_snr_edges.diff() / unit
    return RunBound(
        bits_per_dim=(value, error),
        reconstruction=(value - prior_kl[0] - diffusion[0] - context[0], part_error),
        prior_kl=prior_kl,
        diffusion=diffusion,
        context=context,
        num_data=estimate.num_data,
        monte_carlo_error=estimate.monte_carlo_error / unit,
        log_snr_edges=estimate.log_snr_edges.tolist(),
        diffusion_by_log_snr=(estimate.density * width).tolist(),
        diffusion_by_log_snr_error=(estimate.density_error * width).tolist(),
        probe_error=estimate.probe_error / unit,
    )


def without_contexts(programs: Programs, data: Part) -> Part | None:
    """A part's data without contexts, if the network was trained for that; else None."""
    context = programs.problem.context
    if context is None or not context.dropout:
        return None
    return Part(data.data, context.unknown.expand(len(data), *context.shape))


def step_bias(programs: Programs, data: Tensor | Part, *, draws: int, seed: int) -> StepBias:
    """The bias of the simulation's step, measured on some data."""
    data = some(data, BIAS_DATA)
    x, _ = in_model_space(programs, data, seed)
    _, model, guide = given_contexts(programs, data)
    bias = step_size_bias(model, guide, x, draws=min(draws, BIAS_DRAWS), seed=seed)
    unit = x[0].numel() * math.log(2)
    return StepBias(bias.step_size, bias.difference / unit, bias.standard_error / unit)


def path_gap(programs: Programs, data: Tensor | Part, *, seed: int) -> str:
    """The loss by paths whose drift sees the data, with any network, in words."""
    points, _ = in_model_space(programs, some(data), seed)
    information = path_information_gap(programs.model.diffusion, points, levels=64, seed=seed)
    gap = information.gap.scaled(1 / (points[0].numel() * math.log(2)))
    return (
        f"part of the bound that is lost with any network, since a path has more information about "
        f"its datum than its ends have: {gap} bits/dim, computed from {len(points)} of the data"
    )
