"""The test bound of a trained run, or of its denoiser under another diffusion.

    python -m inference.evaluate runs/digits-learned-0-0
    python -m inference.evaluate --reuse runs/digits-learned-0-0 --guide alda
    python -m inference.evaluate runs/digits-learned-0-0 --method importance --samples 64
    python -m inference.evaluate runs/digits-learned-0-0 --out rows.csv

For a diffusion without a closed form it also measures what the step of the simulation does. The
last line has the form ``bits/dim 1.234 ± 0.005 (reconstruction …, prior KL …, diffusion …)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from inference.checkpoints import write_atomically
from inference.cli import check_positive, command_line
from inference.loading import Programs
from inference.output import Row, aligned, check_out, csv_bytes
from inference.processes import Precision, autocast_dtype, start
from inference.reuse import Reused, open_run
from models import Tabular
from models.base import SCORES, Part
from models.files import spread
from pyro_mdm import bits_per_dim
from pyro_mdm.contexts import Labels
from pyro_mdm.evaluation.classification import ClassPosterior, class_posterior
from pyro_mdm.evaluation.closed_form import FEWEST
from pyro_mdm.evaluation.comparison import compare, log_likelihood
from pyro_mdm.evaluation.estimates import Z95, Difference, Estimate, Weighted
from pyro_mdm.evaluation.path_information import path_information_gap
from pyro_mdm.evaluation.simulated import step_size_bias
from pyro_mdm.paths.flow import Solver
from pyro_mdm.scores.denoiser import DenoiserScore
from pyro_mdm.support.measured import ALL_TERMS, TERMS, Measured

__all__ = [
    "Bound",
    "Paired",
    "StepBias",
    "against_own",
    "baseline",
    "bound_of",
    "by_datum",
    "estimated",
    "evaluate",
    "in_bits",
    "in_model_space",
    "measure",
    "of_data",
    "some",
    "step_bias",
    "weights",
]

Stored = TypeVar("Stored", Tensor, Part, Tensor | Part)
"""Stored data, alone or with what is known of them."""

BIAS_DATA, BIAS_DRAWS = 512, 4
"""The most data, and draws of each, that the bias of the simulation's step is measured with."""

LARGE_BIAS = 0.1
"""Bits/dim that half the step may change without a warning."""


@dataclass(frozen=True)
class StepBias:
    """What half the step of a simulation would change, in bits/dim at the same paths."""

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
class Bound:
    """The bound on a part of the data by term, each (value, standard error) in bits/dim.

    The value of ``bits_per_dim`` is the sum of the others. Dequantized data count the
    log-determinant and the levels with the reconstruction.
    """

    bits_per_dim: tuple[float, float]
    reconstruction: tuple[float, float]
    prior_kl: tuple[float, float]
    diffusion: tuple[float, float]
    num_data: int
    monte_carlo_error: float  # of bits_per_dim: what other noise would change
    log_snr_edges: list[float]
    diffusion_by_log_snr: list[float]  # the part of ``diffusion`` in each interval
    diffusion_by_log_snr_error: list[float]
    probe_error: float = 0.0  # the part of Hutchinson's probes in it; NaN for a single one
    step_bias: StepBias | None = None  # of a simulation, where it was measured
    context: tuple[float, float] = (0.0, 0.0)  # of a latent context, where there is one

    @property
    def terms(self) -> dict[str, tuple[float, float]]:
        """(value, standard error) by name."""
        names = ALL_TERMS if self.context[0] else TERMS
        return {name: getattr(self, name) for name in ("bits_per_dim", *names)}

    @property
    def by_log_snr(self) -> tuple[list[float], list[float], list[float]]:
        """The diffusion term by interval of log SNR: edges, values, standard errors."""
        return self.log_snr_edges, self.diffusion_by_log_snr, self.diffusion_by_log_snr_error

    @property
    def columns(self) -> dict[str, float]:
        """The same as the columns of metrics.csv."""
        values = {name: value for name, (value, _) in self.terms.items()}
        errors = {f"{name}_standard_error": error for name, (_, error) in self.terms.items()}
        return values | errors

    def as_json(self) -> dict[str, Any]:
        """For results.json."""
        named = {k: {"value": v, "standard_error": e} for k, (v, e) in self.terms.items()}
        return asdict(self) | named

    def __str__(self) -> str:
        context = f", context {self.context[0]:.3f}" if self.context[0] else ""
        return (
            f"bits/dim {self.bits_per_dim[0]:.3f} ± {self.bits_per_dim[1]:.3f} "
            f"(reconstruction {self.reconstruction[0]:.3f}, prior KL {self.prior_kl[0]:.3f}, "
            f"diffusion {self.diffusion[0]:.3f}{context})"
        )


def measure(programs: Programs, data: Tensor | Part, *, seed: int = 0, **options: Any) -> Bound:
    """The bound on stored ``data`` (n, *event_shape), averaged, in bits/dim.

    Of data that come with contexts it is that of data given these.

    Args:
        seed: of the noise, that of dequantization too.
        options: draws, batch_size, …, of :func:`pyro_mdm.evaluation.log_likelihood`.
    """
    estimate, log_det = estimated(programs, data, seed=seed, **options)
    return bound_of(estimate, log_det, programs.problem.dequantized_levels)


def estimated(
    programs: Programs, data: Tensor | Part, *, seed: int = 0, **options: Any
) -> tuple[Estimate, Tensor]:
    """The bound on each of stored ``data`` in nats, and the log-determinants (n,).

    Arguments are those of :func:`measure`.
    """
    _, model, guide = of_data(programs, data)
    x, log_det = in_model_space(programs, data, seed)
    options |= {"seed": seed, "baseline": baseline([programs])}
    return log_likelihood(model, guide, x, **options), log_det


def some(data: Stored, most: int = 256) -> Stored:
    """Of many data ``most``, spread evenly: neighbours in a data set are often of one kind."""
    return data if len(data) <= most else data[spread(len(data), most)]


def of_data(programs: Programs, data: Tensor | Part) -> Programs:
    """The programs of data given what comes with them."""
    return programs.given(data.context) if isinstance(data, Part) else programs


def in_model_space(programs: Programs, data: Tensor | Part, seed: int) -> tuple[Tensor, Tensor]:
    """Stored data as x on the model's device, and the log-determinants."""
    stored = data.data if isinstance(data, Part) else data
    x, log_det = programs.problem.transform(stored, torch.Generator().manual_seed(seed))
    return x.to(programs.model.diffusion.start_time.device), log_det


def baseline(entries: Sequence[Programs]) -> DenoiserScore | None:
    """A denoiser for its baseline where no program has one; None where the programs provide it.

    It is for diffusions with a closed form, if there are any.
    """
    linear = [p for p in entries if p.model.diffusion.closed_form]
    if not linear or any(isinstance(p.model.score_function, DenoiserScore) for p in linear):
        return None
    problem, diffusion = linear[0].problem, linear[0].model.diffusion
    levels = "discrete" in problem.scores and diffusion.transform is None  # they are of pixels
    name = "discrete" if levels else "denoiser"
    with torch.random.fork_rng():  # its network, untrained, is not used
        score = problem.score_function(SCORES[name], diffusion)
    score = score.to(diffusion.start_time.device)
    return score if isinstance(score, DenoiserScore) else None


def in_bits(
    estimate: Estimate | Weighted, log_det: Tensor | float, levels: int | None
) -> tuple[float, float]:
    """A bound in bits/dim and its standard error over the data.

    Args:
        log_det: log|det ∂x/∂w| (n,) in nats of the data as transformed;  levels: their number if
            noise made them continuous, else None.
    """
    d, n = estimate.num_dims, estimate.num_data
    bits = bits_per_dim(estimate.per_datum, d, log_det=log_det, num_levels=levels)
    if not isinstance(log_det, Tensor):
        return float(bits.mean()), estimate.bits_per_dim_error
    # the log-determinant varies with the datum, which the estimate's own error does not know; how
    # it varies with the bound is told by data that were drawn, others have a prediction alone
    drawn = estimate.per_datum_error.isfinite()
    drawn = drawn if bool(drawn.any()) else ~drawn  # by one weight each: drawn, of unknown error
    both = torch.stack([estimate.per_datum[drawn], log_det.double().cpu()[drawn]])
    more = float(log_det.double().var() + 2 * both.cov()[0, 1]) / (d * math.log(2)) ** 2 / n
    return float(bits.mean()), math.sqrt(max(estimate.bits_per_dim_error**2 + more, 0.0))


def bound_of(estimate: Estimate, log_det: Tensor | float, levels: int | None) -> Bound:
    """An estimate in bits/dim; arguments as for :func:`in_bits`."""
    unit = estimate.num_dims * math.log(2)
    value, error = in_bits(estimate, log_det, levels)
    prior_kl, diffusion, context = (
        (t / unit, e / unit) for t, e in (estimate.prior_kl, estimate.diffusion, estimate.context)
    )
    # the log-determinant varies with the datum: its error is in the whole, not known for this part
    part_error = math.nan if levels else estimate.reconstruction[1] / unit
    width = estimate.log_snr_edges.diff() / unit
    return Bound(
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


class Paired(NamedTuple):
    """The bounds of a reused denoiser under its own diffusion and another, at the same draws."""

    own: Bound
    new: Bound
    difference: Difference  # new - own
    estimate: Estimate  # the new one, in nats
    log_det: Tensor  # (n,), nats


def against_own(reused: Reused, data: Tensor | Part, *, seed: int = 0, **options: Any) -> Paired:
    """The bound of a reused denoiser under its own diffusion and the other, and other - own.

    Both on stored ``data`` (n, *event_shape) at the same log SNRs with the same noise: where their
    ranges of log SNR overlap, the diffusion terms differ by rounding. Arguments are those of
    :func:`measure`.
    """
    x, log_det = in_model_space(reused.own, data, seed)
    both = {"new": reused.programs, "own": reused.own}
    pairs = {name: of_data(programs, data)[1:] for name, programs in both.items()}
    found = compare(pairs, x, seed=seed, **options)
    levels = reused.own.problem.dequantized_levels
    own, new = (bound_of(found.estimates[name], log_det, levels) for name in ("own", "new"))
    return Paired(own, new, found.differences[0], found.estimates["new"], log_det)


def evaluate(
    run: Path | None = None,
    draws: int = 32,
    batch_size: int = 256,
    seed: int = 0,
    reuse: Path | None = None,
    guide: str | None = None,
    max_log_snr: float | None = None,
    min_log_snr: float | None = None,
    num_variables: int | None = None,
    rank: int | None = None,
    half_width: float | None = None,
    method: Literal["elbo", "importance", "flow", "all"] = "elbo",
    samples: int | None = None,
    times: int | None = None,
    probes: int | None = None,
    rtol: float | None = None,
    test_size: int | None = None,
    classify: bool = False,
    accelerator: str = "auto",
    precision: Precision = "32-true",
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Print the test bound of a run, with its averaged weights.

    Give a run folder alone (--run may be left out), or --reuse RUN --guide NAME for the run's
    trained denoiser under another diffusion, without training.

    Args:
        run: the run folder; nothing in it is changed.
        draws: network evaluations per test datum, at log SNRs of low discrepancy.
        batch_size: data per network call.
        seed: of the noise; the one and only source of difference between two evaluations.
        reuse: a run folder whose denoiser is put under --guide.
        guide: with --reuse: vpsde, cld, malda, alda, hold, learned (as it starts), module:Name,
            file.py:Name, or run:FOLDER for the diffusion that another run ended with.
        max_log_snr: with --reuse: log SNR at the start time; by default the run's.
        min_log_snr: with --reuse: log SNR at time T, to which the clock is scaled; by default the
            guide's own clock, scaled if it would leave the range the network was trained on.
        num_variables: with --reuse --guide learned: K.
        rank: with --reuse --guide learned: rank of D.
        half_width: draw as often as a pilot says it takes for a 95% interval, as far as noise goes,
            of ± this many bits/dim; draws are then the most there will be, pilot included.
        method: elbo, the bound; importance, the chain on a grid by importance weights over its
            paths; flow, the probability-flow ODE and the decoder; or all, beside each other. They
            are of different models, which are one where the score is exact: do not sort them.
        samples: weights of each datum, 64 by default of importance, 1 of flow.
        times: of the grid of importance, even in log SNR; 65 by default.
        probes: of flow: of Hutchinson's estimator, 0 for the exact divergence (d derivatives a call
            of a denoiser, K·d of other scores); by default 0 up to 16 states and 1 for more.
        rtol: of flow: tolerance of dopri5, relative and absolute; 1e-4 by default.
        test_size: the most test data, spread evenly over the test part; by default all.
        classify: of a run with --condition labels: classify the test data by Bayes' rule from the
            bounds given each class, which takes --draws network calls per datum and class.
        accelerator: cpu, cuda, … or auto. Under torchrun all processes share the work of elbo.
        precision: of the network.
        out: a .csv for the bound on each datum, its Monte Carlo error, its label and, with
            --classify, the probability of each class. ``row`` is the number of the datum in the
            data set, such as a row of the table, from 0; in an official test part, in that part.
            Of dequantized images it is the bound at one draw of that noise, by --seed, which the
            error leaves out. With --half_width both are empty for data that were never drawn.
        overwrite: replace ``out`` if it exists.
    """
    check_positive(
        draws=draws, batch_size=batch_size, half_width=half_width, samples=samples, rtol=rtol
    )
    if test_size is not None and test_size < FEWEST:
        raise ValueError(f"--test_size is {test_size}, expected at least {FEWEST}")
    _check_methods(
        method,
        elbo={"half_width": half_width},
        importance={"times": times},
        flow={"probes": probes, "rtol": rtol},
    )
    if classify and method != "elbo":
        raise ValueError(
            f"--classify is by bounds, and --method is {method}; leave one of them out"
        )
    if out is not None:
        if method != "elbo":
            raise ValueError(
                f"--out is for bounds, and --method is {method}; leave one of them out"
            )
        check_out(out, (".csv",), overwrite=overwrite)
    elif overwrite:
        raise ValueError("--overwrite is for --out, which is not given; leave it out")
    if method == "elbo" and samples is not None:
        raise ValueError("--samples is for --method importance and flow, not elbo; leave it out")
    ends = {"max_log_snr": max_log_snr, "min_log_snr": min_log_snr}
    shape = {"num_variables": num_variables, "rank": rank}
    fabric = start(accelerator, precision)
    folder, programs, checkpoint, reused = open_run(run, reuse, guide, **ends, **shape)
    for one in [programs, *([reused.own] if reused is not None else [])]:
        one.model.to(fabric.device)
        one.model.score_function.autocast_dtype = autocast_dtype(precision)
    data, lead = programs.problem.part("test"), fabric.is_global_zero
    if test_size is not None:
        data = some(data, test_size)
    if method != "elbo":
        if fabric.world_size > 1:
            raise ValueError(f"--method {method} runs in one process; start it without torchrun")
        if reused is not None:
            print(*reused.notes, sep="\n")
        known = programs.problem.context is not None
        given = f", each given its {given_in_words(programs)}" if known else ""
        print(f"{folder}: step {checkpoint.step}, {len(data)} test data{given}")
        options: dict[str, Any] = {}
        if method == "all":
            elbo = {"draws": draws, "seed": seed, "batch_size": batch_size, "progress": True}
            print(f"elbo: {measure(programs, data, **elbo)}")
        diffusion = programs.model.diffusion
        led_by_data = diffusion.drifts_by_data or diffusion.context is not None
        if method == "all" and not diffusion.closed_form:
            print("importance: none, as it needs a diffusion with a closed form")
        elif method == "all" and (diffusion.starts_at_data or led_by_data):
            print("importance: none, as it needs a diffusion that does not see the data")
        elif method in ("importance", "all"):
            options = {"samples": samples or 64, "times": times, "seed": seed}
            print(f"importance: {weights(programs, data, 'importance', **options)}", flush=True)
        if method == "all" and led_by_data:
            print("flow: none, as it needs a drift that does not see the data")
        elif method in ("flow", "all"):
            rtol = 1e-4 if rtol is None else rtol
            solver = _solver(programs, probes, rtol)
            single = samples is None or (method == "all" and solver.probes > 0)
            options = {"samples": 1 if single else samples, "solver": solver, "seed": seed}
            print(f"flow: {weights(programs, data, 'flow', **options)}", flush=True)
        return
    if lead:
        number = f"{'' if half_width is None else 'at most '}{draws} draws of noise for each"
        print(f"{folder}: step {checkpoint.step}, {len(data)} test data, {number}")
    options = {"draws": draws, "half_width": half_width, "seed": seed}
    options |= {"batch_size": batch_size, "progress": lead, "distributed": fabric.world_size > 1}
    probabilities = None
    if classify:
        shared = {"draws": draws, "seed": seed, "batch_size": batch_size, "progress": lead}
        said, classified = classes(programs, data, **shared, distributed=fabric.world_size > 1)
        probabilities = classified.log_probs.exp()
        if lead:
            print(said)
    if (nothing := told_nothing(programs, data)) is not None:
        without = measure(programs, nothing, **options)
        if lead:
            print(f"of x alone, its {given_in_words(programs)} not told: {without}")
    levels = programs.problem.dequantized_levels
    if reused is None:
        estimate, log_det = estimated(programs, data, **options)
        bound = bound_of(estimate, log_det, levels)
    else:
        own, bound, difference, estimate, log_det = against_own(reused, data, **options)
        if lead:
            print(*reused.notes, sep="\n")
            print(_compared(reused, own, bound, difference))
    if not lead:
        return
    if out is not None:
        labels = data.context if isinstance(programs.problem.context, Labels) else None
        numbers = some(programs.problem.numbers("test"), len(data))
        rows = by_datum(estimate, log_det, levels, numbers, labels, probabilities)
        write_atomically(out, csv_bytes(rows))
        print(f"the bound of each datum: {out}")
    if not programs.model.diffusion.closed_form:
        print(step_bias(programs, data, draws=draws, seed=seed))
        if bound.probe_error:
            print(
                f"Hutchinson's probes: {bound.probe_error:.4f} bits/dim of the next (nan for one)"
            )
    if programs.model.diffusion.drifts_by_data:
        print(path_gap(programs, data, seed=seed))
    print(f"Monte Carlo error {bound.monte_carlo_error:.4f} bits/dim (part of the ± below)")
    if half_width is not None:
        found = Z95 * bound.monte_carlo_error
        word = "reached" if found <= half_width else "NOT reached"
        print(f"± {half_width:g} bits/dim at 95%, as far as noise goes, is {word}: ± {found:.4f}")
    if isinstance(programs.problem, Tabular):
        print(nats_by_row(bound, math.prod(programs.model.event_shape)))
    if programs.problem.context is not None:
        print(f"of x given its {given_in_words(programs)}:")
    print(bound)


def by_datum(
    estimate: Estimate,
    log_det: Tensor,
    levels: int | None,
    numbers: Tensor,
    labels: Tensor | None = None,
    probabilities: Tensor | None = None,
) -> list[Row]:
    """The bound on each datum in bits/dim with its Monte Carlo error, for a CSV file.

    Both are empty for a datum that was never drawn, of which nothing was measured.

    Args:
        log_det, levels: as of :func:`in_bits`.
        numbers: of the data, (n,).
        labels: of the data, (n,), -1 where not known.
        probabilities: of each class, (n, classes).
    """
    unit = estimate.num_dims * math.log(2)
    bits = bits_per_dim(
        estimate.per_datum, estimate.num_dims, log_det=log_det.double().cpu(), num_levels=levels
    )
    columns: dict[str, list[Any]] = {"row": numbers.tolist()}
    if labels is not None:
        columns["label"] = ["" if label < 0 else label for label in labels.tolist()]
    never = estimate.halves.isnan().all(0)  # drawn: what there is, is the baseline's prediction
    columns["bits_per_dim"] = bits.masked_fill(never.to(bits.device), math.nan).tolist()
    columns["bits_per_dim_standard_error"] = (estimate.per_datum_error / unit).tolist()
    for name in ("bits_per_dim", "bits_per_dim_standard_error"):
        columns[name] = ["" if math.isnan(value) else value for value in columns[name]]
    if probabilities is not None:
        each = probabilities.unbind(-1)
        columns |= {f"probability_{c}": own.tolist() for c, own in enumerate(each)}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def nats_by_row(bound: Bound, columns: int) -> str:
    """A bound in bits/dim as one on the log density of a row of a table, for people."""
    value, error = (columns * math.log(2) * number for number in bound.bits_per_dim)
    return f"log p of a row, of what is there: at least {-value:.3f} ± {error:.3f} nats"


def given_in_words(programs: Programs) -> str:
    """What data are given, for people."""
    return "label" if isinstance(programs.problem.context, Labels) else "context"


def told_nothing(programs: Programs, data: Part) -> Part | None:
    """The same data without what they are given, where the network was trained for that."""
    context = programs.problem.context
    if context is None or not context.dropout:
        return None
    return Part(data.data, context.unknown.expand(len(data), *context.shape))


def classes(
    programs: Programs, data: Part, *, seed: int, **options: Any
) -> tuple[str, ClassPosterior]:
    """How well Bayes' rule classifies stored data by the bounds given each class, for people, and
    what it says of each datum.

    Raises:
        ValueError: a run whose data are given no labels.
    """
    if not isinstance(programs.problem.context, Labels):
        raise ValueError(
            "--classify needs the bounds of data given each class; use a run with --condition "
            "labels, or leave it out"
        )
    problem, model, guide = programs
    x, log_det = in_model_space(programs, data, seed)
    train = problem.part("train").context
    assert train is not None and data.context is not None
    counts = train.bincount(minlength=programs.problem.context.num_classes).double()
    found = class_posterior(model, guide, x, prior=counts / counts.sum(), seed=seed, **options)
    labels = data.context
    right, loss = found.accuracy(labels), found.log_loss(labels)
    bits = bits_per_dim(
        found.mixture, found.num_dims, log_det=log_det, num_levels=problem.dequantized_levels
    )
    mixture = Measured.of(bits)
    noise = found.mixture_gap / (found.num_dims * math.log(2))
    said = (
        f"classes by Bayes' rule from the bounds, {found.network_calls:,} network calls: accuracy "
        f"{right.mean:.3f} ± {right.standard_error:.3f}, log loss {loss.mean:.3f} ± "
        f"{loss.standard_error:.3f} nats, expected calibration error "
        f"{found.calibration_error(labels):.3f}\n"
        f"of the mixture of classes: bits/dim {mixture.mean:.3f} ± "
        f"{math.hypot(mixture.standard_error, noise):.3f}"
    )
    return said, found


def _check_methods(method: str, **options: dict[str, Any]) -> None:
    """Raises ValueError for an option of another method than the chosen one."""
    for of, own in options.items():
        given = [name for name, value in own.items() if value is not None]
        if given and method not in (of, "all"):
            raise ValueError(f"--{given[0]} is for --method {of}, not {method}; leave it out")


EXACT = 16
"""States K·d up to which the divergence of the flow is exact by default."""


def _solver(programs: Programs, probes: int | None, rtol: float) -> Solver:
    if probes is None:
        states = programs.model.diffusion.num_variables * math.prod(programs.model.event_shape)
        probes = 0 if states <= EXACT else 1
    return Solver(rtol=rtol, atol=rtol, probes=probes)


def weights(
    programs: Programs, data: Tensor | Part, method: Literal["importance", "flow"], **options: Any
) -> str:
    """The likelihood of stored ``data`` by weights, in bits/dim, for people.

    Args:
        options: seed and those of :func:`~pyro_mdm.evaluation.importance_weighted` or
            :func:`~pyro_mdm.evaluation.probability_flow`.
    """
    problem, model, guide = of_data(programs, data)
    x, log_det = in_model_space(programs, data, options["seed"])
    found = log_likelihood(model, guide, x, method=method, progress=True, **options)
    value, error = in_bits(found, log_det, problem.dequantized_levels)
    single = found.bound.mean - found.mean  # nats, of one weight less all
    gain = -single / (found.num_dims * math.log(2))
    several = options["samples"] > 1
    told = f"{found.weights_in_words}; {gain:.3f} bits/dim below one weight; " if several else ""
    return (
        f"bits/dim {value:.3f} ± {error:.3f} ({told}{found.network_calls} network calls for each "
        "datum)"
    )


def step_bias(programs: Programs, data: Tensor | Part, *, draws: int, seed: int) -> StepBias:
    """Measure it on some of the data."""
    data = some(data, BIAS_DATA)
    x, _ = in_model_space(programs, data, seed)
    _, model, guide = of_data(programs, data)
    found = step_size_bias(model, guide, x, draws=min(draws, BIAS_DRAWS), seed=seed)
    unit = x[0].numel() * math.log(2)
    return StepBias(found.step_size, found.difference / unit, found.standard_error / unit)


def path_gap(programs: Programs, data: Tensor | Part, *, seed: int) -> str:
    """What paths whose drift sees the data lose whatever the network, in words; of a law that is
    known, that of some of the data."""
    points, _ = in_model_space(programs, some(data), seed)
    found = path_information_gap(programs.model.diffusion, points, levels=64, seed=seed)
    gap = found.gap.scaled(1 / (points[0].numel() * math.log(2)))
    return (
        f"part of the bound that no network wins back, as paths tell more than their ends: {gap} "
        f"bits/dim, if {len(points)} of the data were all there are"
    )


def _compared(reused: Reused, own: Bound, new: Bound, difference: Difference) -> str:
    """The bound by term under both diffusions, and what differs at the same draws."""
    names = (type(p.model.diffusion).__name__ for p in (reused.own, reused.programs))
    rows = [["", *map("{} ({})".format, ("own", "new"), names), "new - own, paired"]]
    for term in own.terms:
        row = (own.terms[term], new.terms[term], getattr(difference, term))
        cells = (f"{round(value, 5) + 0.0:.5f} ± {error:.5f}" for value, error in row)  # no -0
        rows.append([term, *cells])
    return aligned(rows)


if __name__ == "__main__":
    command_line(evaluate, unnamed="run")
