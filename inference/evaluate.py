"""The test bound of a trained run, or of its denoiser under another diffusion.

    python -m inference.evaluate runs/digits-learned-0-0
    python -m inference.evaluate --reuse runs/digits-learned-0-0 --guide alda
    python -m inference.evaluate runs/digits-learned-0-0 --method importance --samples 64
    python -m inference.evaluate runs/digits-learned-0-0 --out rows.csv
    python -m inference.evaluate wine --calibration calibration.png

For a diffusion without a closed form it also measures the bias of the simulation's step. The last
line has the form ``bits/dim 1.234 ± 0.005 (reconstruction …, prior KL …, diffusion …)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from inference.commands.cli import check_positive, command_line
from inference.drawing.pieces import read_pieces, text_columns
from inference.folders.checkpoints import write_atomically
from inference.folders.output import check_out, csv_bytes, png
from inference.folders.runs import RunError
from inference.machine.processes import SinglePrecision, autocast_dtype, start
from inference.measuring.bounds import (
    Calls,
    RunBound,
    bound_of,
    by_datum,
    estimated,
    in_bits,
    in_model_space,
    measure,
    nats_by_row,
    of_data,
    path_gap,
    some,
    step_bias,
    told_nothing,
)
from inference.measuring.reuse import Another, Opened, against_own, open_run
from inference.settings.plan import Programs
from inference.table import Table
from models import DataError, Tabular
from models.base import Part
from models.kinds import kind_of
from pyro_mdm import bits_per_dim
from pyro_mdm.conditioning.classification import ClassPosterior, class_posterior
from pyro_mdm.contexts import Labels
from pyro_mdm.evaluation.comparison import log_likelihood
from pyro_mdm.evaluation.estimates import FEWEST, Z95, Estimate
from pyro_mdm.paths.flow import Solver
from pyro_mdm.support.measured import Measured
from pyro_mdm.tables.calibration import table_calibration
from pyro_mdm.tables.frames import PIECE

if TYPE_CHECKING:
    from typing_extensions import Unpack

Method = Literal["elbo", "importance", "flow", "all"]

EXACT = 16
"""The largest state, K·d, with an exact divergence of the flow by default."""

RTOL = 1e-4
"""The default tolerance of the flow's solver."""


def evaluate(
    run: Path | None = None,
    draws: int = 32,
    batch_size: int = 256,
    seed: int = 0,
    reuse: Path | None = None,
    guide: str | None = None,
    max_log_snr: float | None = None,
    min_log_snr: float | None = None,
    half_width: float | None = None,
    method: Method = "elbo",
    samples: int | None = None,
    times: int | None = None,
    probes: int | None = None,
    rtol: float | None = None,
    test_size: int | None = None,
    classify: bool = False,
    accelerator: str = "auto",
    precision: SinglePrecision = "32-true",
    out: Path | None = None,
    calibration: Path | None = None,
    overwrite: bool = False,
    data: str | None = None,
) -> None:
    """Print the test bound of a run, with its averaged weights.

    Give a run folder alone (--run may be left out), or --reuse RUN --guide NAME for the run's
    trained denoiser under another diffusion, without training.

    Args:
        run: run folder, which is only read, or the name of a trained model in models/trained, such
            as digits.
        draws: number of network evaluations per test datum, at log SNRs of low discrepancy.
        batch_size: number of data per network call.
        seed: seed of the noise; with the same seed an evaluation repeats exactly.
        reuse: run folder whose denoiser is put under --guide.
        guide: diffusion that the denoiser of --reuse is put under: vpsde, cld, malda, alda, hold,
            ve, subvp, rectified_flow, cosine, momentum_ve, learned (as it starts), module:Name,
            file.py:Name, or run:FOLDER for the diffusion that another run ended with.
        max_log_snr: log SNR at the start time, with --reuse; by default the run's.
        min_log_snr: log SNR at time T, with --reuse, to which the clock is scaled; by default the
            guide keeps its own clock, which is scaled if it would leave the range that the network
            was trained on.
        half_width: half-width, in bits/dim, that the 95% interval for the noise is to have. A pilot
            says how many draws it takes; --draws is then the most that are made, with those of the
            pilot.
        method: method: elbo, the bound; importance, importance weights over paths of the chain on a
            grid; flow, the probability-flow ODE and the decoder; or all. They estimate log p of
            different models, which agree where the score is exact: do not rank them.
        samples: number of weights per datum; by default 64 for importance, and 1 for flow.
        times: number of times in the grid of --method importance, even in log SNR; 65 by default.
        probes: number of Hutchinson's probes of --method flow, or 0 for the exact divergence, which
            takes d derivatives a call of a denoiser, and K·d of other scores; by default 0 up to 16
            states, and 1 for more.
        rtol: tolerance of the solver (dopri5) of --method flow, relative and absolute; 1e-4 by
            default.
        test_size: largest number of test data, spread evenly over the test part; by default all.
        classify: classify the test data by Bayes' rule from the bounds given each class, with
            --draws network calls per datum and class; for a run of --condition labels.
        accelerator: kind of device: cpu, cuda, … or auto. Under torchrun all processes share the
            work of elbo.
        precision: precision of the network; a run of 64-true stays so.
        out: name of a .csv file for the bound on each datum, its Monte Carlo error, its label and,
            with --classify, the probability of each class. The column ``row`` is the index of the
            datum, from 0, in the data set, such as a row of the table, or in an official test part.
            For dequantized images the bound is at one draw of the dequantization, by --seed, and
            its error leaves that out. With --half_width both are empty for data that were never
            drawn.
        calibration: name of a .png file for the calibration of a table's test rows, whose entries
            are drawn 99 times, given about half of the others in their row.
        overwrite: replace the files of --out and --calibration if they exist.
        data: table of new rows, which are evaluated in place of the test data, for a run of a
            table: a .csv or .parquet file, or a name as for inference.train. The file of --out then
            has for each row a bound on log p of what is there, in nats, and its standard error.
    """
    if data is not None:
        asked = {
            **{"reuse": reuse, "guide": guide, "max_log_snr": max_log_snr},
            **{"min_log_snr": min_log_snr, "half_width": half_width, "samples": samples},
            **{"times": times, "probes": probes, "rtol": rtol, "test_size": test_size},
            **{"classify": classify or None, "method": None if method == "elbo" else method},
            "precision": None if precision == "32-true" else precision,
            "calibration": calibration,
        }
        if others := [f"--{name}" for name, value in asked.items() if value is not None]:
            raise ValueError(
                f"--data asks for bounds on new rows of a table, which no other option but --draws "
                f"changes; leave out {', '.join(others)}"
            )
        check_positive(draws=draws, batch_size=batch_size)
        _check_out(out, overwrite)
        _of_rows(run, data, out, draws, batch_size, seed, accelerator)
        return
    check_positive(
        draws=draws, batch_size=batch_size, half_width=half_width, samples=samples, rtol=rtol
    )
    if test_size is not None and test_size < FEWEST:
        raise ValueError(f"--test_size is {test_size}, expected at least {FEWEST}")
    weighing = Weighing(samples=samples, times=times, probes=probes, rtol=rtol, seed=seed)
    weighing.check(method, half_width)
    _check_bounds(method, classify, out)
    if calibration is not None:
        check_out(calibration, (".png",), overwrite=overwrite, option="calibration")
    if out is not None or calibration is None:
        _check_out(out, overwrite)
    fabric = start(accelerator, precision)
    lead, several = fabric.is_global_zero, fabric.world_size > 1
    other = Another(guide, max_log_snr, min_log_snr)
    opened = open_run(run, reuse, other)
    for programs in opened.all_programs:
        programs.model.to(fabric.device)
        programs.model.score_function.autocast_dtype = autocast_dtype(precision)
    tested = opened.programs.problem.part("test")
    tested = tested if test_size is None else some(tested, test_size)
    calls = Calls(draws=draws, batch_size=batch_size, progress=lead, distributed=several)
    if calibration is not None and lead:
        _calibrate(opened, tested.data, calibration, seed)
    if method == "elbo":
        _by_bound(opened, tested, seed, half_width, calls, classify=classify, out=out, lead=lead)
        return
    if several:
        raise ValueError(f"--method {method} runs in one process; start it without torchrun")
    for note in opened.notes:
        print(note)
    is_conditional = opened.programs.problem.context is not None
    given = f", each given its {given_in_words(opened.programs)}" if is_conditional else ""
    print(f"{opened.folder}: step {opened.checkpoint.step}, {len(tested)} test data{given}")
    if method == "all":
        print(f"elbo: {measure(opened.programs, tested, seed=seed, **calls)}")
    _by_weights(opened.programs, tested, method, weighing)


def _calibrate(opened: Opened, rows: Tensor, out: Path, seed: int) -> None:
    """Write a picture of the calibration of test rows, and print it in words."""
    problem, model, _ = opened.programs
    if not isinstance(problem, Tabular):
        raise ValueError("--calibration is for runs of --model tabular; leave it out")
    measured = table_calibration(problem, model, rows, seed=seed, progress=True)
    write_atomically(out, png(measured.figure()))
    print(f"entries of {len(rows)} test rows, given about half of the others in their row:")
    print(measured)
    print(f"calibration by column: {out}")


def _check_bounds(method: Method, classify: bool, out: Path | None) -> None:
    """Raise unless options of bounds come with bounds."""
    for option, given in (("classify", classify), ("out", out is not None)):
        if given and method != "elbo":
            what = "by" if option == "classify" else "for"
            raise ValueError(
                f"--{option} is {what} bounds, and --method is {method}; leave one of them out"
            )


def _check_out(out: Path | None, overwrite: bool) -> None:
    """Raise unless ``out`` may be written, and ``overwrite`` is for a file."""
    if out is not None:
        check_out(out, (".csv",), overwrite=overwrite)
    elif overwrite:
        raise ValueError("--overwrite is for --out and --calibration, which are not given")


def _of_rows(
    run: Path | None,
    data: str,
    out: Path | None,
    draws: int,
    batch_size: int,
    seed: int,
    accelerator: str,
) -> None:
    """Measure the bound on rows of a new table, and print its mean."""
    import pandas as pd

    if run is None:
        raise RunError("--data is of rows for a run, which is missing; give its folder")
    table = Table.from_run(run, accelerator=accelerator)
    pieces = [
        table.measured(rows.table, None, draws, batch_size, seed, piece=k)
        for k, rows in enumerate(read_pieces(data, PIECE, text_columns(table.problem.columns)))
    ]
    if not pieces:
        raise DataError(f"--data {data} has no row, expected one at least")
    rows = pd.concat(pieces)
    if out is not None:
        numbered = rows.reset_index(drop=True)
        write_atomically(out, numbered.to_csv(index_label="row").encode())
        print(f"the bound of each row: {out}")
    values = torch.tensor(rows["log_prob"].tolist())
    print(f"log p of the entries of a row: at least {Measured.of(values)} nats")


# -- bounds ----------------------------------------------------------------------------------------


def _by_bound(
    opened: Opened,
    data: Part,
    seed: int,
    half_width: float | None,
    calls: Calls,
    *,
    classify: bool,
    out: Path | None,
    lead: bool,
) -> None:
    """Measure the bound on data and print it; ``lead``: this process prints."""
    programs, problem = opened.programs, opened.programs.problem

    def say(text: str) -> None:
        if lead:
            print(text)

    most = "" if half_width is None else "at most "
    number = f"{most}{calls['draws']} draws of noise for each"
    say(f"{opened.folder}: step {opened.checkpoint.step}, {len(data)} test data, {number}")
    probabilities = None
    if classify:
        said, classified = classes(programs, data, seed=seed, **calls)
        probabilities = classified.log_probs.exp()
        say(said)
    if (nothing := told_nothing(programs, data)) is not None:
        without = measure(programs, nothing, seed=seed, half_width=half_width, **calls)
        say(f"of x alone, without its {given_in_words(programs)}: {without}")
    if opened.reused is None:
        estimate, log_det = estimated(programs, data, seed=seed, half_width=half_width, **calls)
        bound = bound_of(estimate, log_det, problem.dequantized_levels)
    else:
        pair = against_own(opened.reused, data, seed=seed, half_width=half_width, **calls)
        estimate, log_det, bound = pair.estimate, pair.log_det, pair.new
        say("\n".join([*opened.notes, pair.table]))
    if not lead:
        return
    if out is not None:
        _write(out, programs, data, estimate, log_det, probabilities)
    for note in _notes(programs, data, bound, calls["draws"], seed, half_width):
        print(note)
    print(bound)


def _write(
    out: Path,
    programs: Programs,
    data: Part,
    estimate: Estimate,
    log_det: Tensor,
    probabilities: Tensor | None,
) -> None:
    problem = programs.problem
    labels = data.context if isinstance(problem.context, Labels) else None
    numbers = some(problem.numbers("test"), len(data))
    levels = problem.dequantized_levels
    names = problem.class_names
    rows = by_datum(estimate, log_det, levels, numbers, labels, probabilities, names)
    write_atomically(out, csv_bytes(rows))
    print(f"the bound of each datum: {out}")


def _notes(
    programs: Programs, data: Part, bound: RunBound, draws: int, seed: int, half_width: float | None
) -> list[str]:
    """Remarks on a bound, printed before it."""
    problem, model, _ = programs
    kind, notes = kind_of(model.diffusion), []
    if kind.simulated:
        notes.append(str(step_bias(programs, data, draws=draws, seed=seed)))
    if kind.simulated and bound.probe_error:
        error = bound.probe_error
        notes.append(f"Hutchinson's probes: {error:.4f} bits/dim of the next (nan for one)")
    if kind.path_gap:
        notes.append(path_gap(programs, data, seed=seed))
    error = bound.monte_carlo_error
    notes.append(f"Monte Carlo error {error:.4f} bits/dim (part of the ± below)")
    if half_width is not None:
        word = "reached" if Z95 * error <= half_width else "NOT reached"
        asked = f"± {half_width:g} bits/dim at 95%, as far as noise goes"
        notes.append(f"{asked}, is {word}: ± {Z95 * error:.4f}")
    if isinstance(problem, Tabular):
        notes.append(nats_by_row(bound, model.num_dims))
    if problem.context is not None:
        notes.append(f"of x given its {given_in_words(programs)}:")
    return notes


def given_in_words(programs: Programs) -> str:
    """The context that data are given, in words."""
    return "label" if isinstance(programs.problem.context, Labels) else "context"


def classes(
    programs: Programs, data: Part, *, seed: int, **calls: Unpack[Calls]
) -> tuple[str, ClassPosterior]:
    """The accuracy of Bayes' rule from the bounds given each class, in words, and the posterior.

    Data without labels are a ValueError.
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
    posterior = class_posterior(model, guide, x, prior=counts / counts.sum(), seed=seed, **calls)
    labels = data.context
    right, loss = posterior.accuracy(labels), posterior.log_loss(labels)
    d, levels = posterior.num_dims, problem.dequantized_levels
    bits = bits_per_dim(posterior.mixture, d, log_det=log_det, num_levels=levels)
    mixture = Measured.of(bits)
    noise = posterior.mixture_gap / (d * math.log(2))
    said = (
        f"classes by Bayes' rule from the bounds, {posterior.network_calls:,} network calls: "
        f"accuracy {right.mean:.3f} ± {right.standard_error:.3f}, log loss {loss.mean:.3f} ± "
        f"{loss.standard_error:.3f} nats, expected calibration error "
        f"{posterior.calibration_error(labels):.3f}\n"
        f"of the mixture of classes: bits/dim {mixture.mean:.3f} ± "
        f"{math.hypot(mixture.standard_error, noise):.3f}"
    )
    return said, posterior


# -- likelihoods by weights ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Weighing:
    """The options of likelihoods by weights; None is the method's default."""

    samples: int | None = None
    times: int | None = None
    probes: int | None = None
    rtol: float | None = None
    seed: int = 0

    def check(self, method: Method, half_width: float | None) -> None:
        """Raise ValueError for a given option of another method."""
        options: dict[str, dict[str, float | None]] = {
            "elbo": {"half_width": half_width},
            "importance": {"times": self.times},
            "flow": {"probes": self.probes, "rtol": self.rtol},
        }
        for owner, values in options.items():
            given = [name for name, value in values.items() if value is not None]
            if given and method not in (owner, "all"):
                raise ValueError(
                    f"--{given[0]} is for --method {owner}, not {method}; leave it out"
                )
        if method == "elbo" and self.samples is not None:
            raise ValueError(
                "--samples is for --method importance and flow, not elbo; leave it out"
            )

    def solver(self, programs: Programs) -> Solver:
        """The solver of the flow's equation, with exact divergences of small states."""
        model, rtol = programs.model, RTOL if self.rtol is None else self.rtol
        states = model.diffusion.num_variables * math.prod(model.event_shape)
        probes = self.probes if self.probes is not None else 0 if states <= EXACT else 1
        return Solver(rtol=rtol, atol=rtol, probes=probes)


def _by_weights(programs: Programs, data: Part, method: Method, weighing: Weighing) -> None:
    """Print the likelihood by importance weights, by the flow, or by all available methods."""
    unserved = kind_of(programs.model.diffusion).unserved if method == "all" else {}
    samples, seed = weighing.samples, weighing.seed
    if "importance" in unserved:
        print(f"importance: none, as it needs {unserved['importance']}")
    elif method in ("importance", "all"):
        number, times = samples or 64, weighing.times
        said = weights(programs, data, "importance", samples=number, seed=seed, times=times)
        print(f"importance: {said}", flush=True)
    if "flow" in unserved:
        print(f"flow: none, as it needs {unserved['flow']}")
    elif method in ("flow", "all"):
        solver = weighing.solver(programs)
        single = samples is None or (method == "all" and solver.probes > 0)
        number = 1 if single or samples is None else samples
        said = weights(programs, data, "flow", samples=number, seed=seed, solver=solver)
        print(f"flow: {said}", flush=True)


def weights(
    programs: Programs,
    data: Tensor | Part,
    method: Literal["importance", "flow"],
    *,
    samples: int,
    seed: int,
    **options: int | Solver | None,
) -> str:
    """The likelihood of stored ``data`` by weights, in bits/dim, in words.

    Args:
        samples: weights per datum.
        seed: the seed of the noise.
        options: options of :func:`~pyro_mdm.evaluation.importance_weighted` or
            :func:`~pyro_mdm.evaluation.probability_flow`.
    """
    problem, model, guide = of_data(programs, data)
    x, log_det = in_model_space(programs, data, seed)
    given = {"samples": samples, "seed": seed} | options
    weighted = log_likelihood(model, guide, x, method=method, progress=True, **given)
    value, error = in_bits(weighted, log_det, problem.dequantized_levels)
    single = weighted.bound.mean - weighted.mean  # nats, of one weight less all
    gain = -single / (weighted.num_dims * math.log(2))
    words = f"{weighted.weights_in_words}; {gain:.3f} bits/dim below one weight; "
    note = words if samples > 1 else ""
    calls = f"{weighted.network_calls} network calls for each datum"
    with_error = f" ± {error:.3f}" if math.isfinite(error) else ""
    return f"bits/dim {value:.3f}{with_error} ({note}{calls})"


if __name__ == "__main__":
    command_line(evaluate, unnamed="run")
