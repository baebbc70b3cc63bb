"""Evaluations of a run on its test data, by the bound and by weights, or on rows of a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from inference.drawing.pieces import read_pieces
from inference.folders.checkpoints import write_atomically
from inference.folders.output import csv_bytes, png, rows_of
from inference.measuring import bounds
from inference.measuring.bounds import Calls, RunBound
from inference.measuring.reuse import Opened, against_own
from inference.settings.plan import Programs
from models import DataError, Tabular
from models.base import Part
from models.csv_files import text_columns
from models.kinds import kind_of
from pyro_mdm import bits_per_dim
from pyro_mdm.conditioning import Labels
from pyro_mdm.conditioning.classification import ClassPosterior, class_posterior
from pyro_mdm.evaluation.comparison import log_likelihood
from pyro_mdm.evaluation.estimates import Estimate, Weighted
from pyro_mdm.paths.flow import Solver
from pyro_mdm.support.measured import Z95, Measured
from pyro_mdm.tables.calibration import table_calibration
from pyro_mdm.tables.columns import Column
from pyro_mdm.tables.frames import PIECE

if TYPE_CHECKING:
    import pandas as pd

Method = Literal["elbo", "importance", "flow", "all"]

EXACT = 16
"""The largest state, K·d, with an exact divergence of the flow by default."""

RTOL = 1e-4
"""The default tolerance of the flow's solver."""


class EvaluatedRun(NamedTuple):
    """A run, and the test data that it is evaluated on.

    Attributes:
        lead: whether this process prints and writes.
    """

    opened: Opened
    data: Part
    seed: int
    calls: Calls
    lead: bool

    @property
    def programs(self) -> Programs:
        return self.opened.programs

    @property
    def context_in_words(self) -> str:
        """What data are given."""
        return "label" if isinstance(self.programs.problem.context, Labels) else "context"

    def _say(self, text: str) -> None:
        if self.lead:
            print(text)

    def calibrate(self, out: Path) -> None:
        """Write a picture of the calibration of the rows of a table, and print it in words."""
        problem, model, _ = self.programs
        if not isinstance(problem, Tabular):
            raise ValueError("--calibration is for runs of --model tabular; leave it out")
        rows = self.data.data
        measured = table_calibration(problem, model, rows, seed=self.seed, progress=True)
        write_atomically(out, png(measured.figure()))
        print(f"entries of {len(rows)} test rows, given about half of the others in their row:")
        print(measured)
        print(f"calibration by column: {out}")

    def by_weights(
        self,
        method: Method,
        samples: int | None,
        times: int | None,
        probes: int | None,
        rtol: float | None,
    ) -> None:
        """Print likelihoods by importance weights, by the flow, or by these and the bound.

        Other arguments are options of the program; None is the method's default.
        """
        opened, data, seed, calls, _ = self
        programs, model = self.programs, self.programs.model
        if calls["distributed"]:
            raise ValueError(f"--method {method} runs in one process; start it without torchrun")
        for note in opened.notes:
            print(note)
        is_conditional = programs.problem.context is not None
        given = f", each given its {self.context_in_words}" if is_conditional else ""
        print(f"{opened.folder}: step {opened.checkpoint.step}, {len(data)} test data{given}")
        if method == "all":
            print(f"elbo: {bounds.measure(programs, data, seed=seed, **calls)}")
        unserved = kind_of(model.diffusion).unserved if method == "all" else {}
        if "importance" in unserved:
            print(f"importance: none, as it needs {unserved['importance']}")
        elif method in ("importance", "all"):
            number = samples or 64
            said = weights(programs, data, "importance", samples=number, seed=seed, times=times)
            print(f"importance: {said}", flush=True)
        if "flow" in unserved:
            print(f"flow: none, as it needs {unserved['flow']}")
        elif method in ("flow", "all"):
            if probes is None:
                states = model.diffusion.num_variables * math.prod(model.event_shape)
                probes = 0 if states <= EXACT else 1
            solver = Solver(rtol=rtol or RTOL, atol=rtol or RTOL, probes=probes)
            single = samples is None or (method == "all" and probes > 0)
            number = 1 if single or samples is None else samples
            said = weights(programs, data, "flow", samples=number, seed=seed, solver=solver)
            print(f"flow: {said}", flush=True)

    def by_bound(self, half_width: float | None, *, classify: bool, out: Path | None) -> None:
        """Measure the bound and print it; ``out``: a file for that of each datum."""
        opened, data, seed, calls, _ = self
        programs, problem = self.programs, self.programs.problem
        most = "" if half_width is None else "at most "
        number = f"{most}{calls['draws']} draws of noise for each"
        step = opened.checkpoint.step
        self._say(f"{opened.folder}: step {step}, {len(data)} test data, {number}")
        probabilities = None
        if classify:
            said, classified = self._classes()
            probabilities = classified.log_probs.exp()
            self._say(said)
        if (nothing := bounds.without_contexts(programs, data)) is not None:
            without = bounds.measure(programs, nothing, seed=seed, half_width=half_width, **calls)
            self._say(f"of x alone, without its {self.context_in_words}: {without}")
        if opened.reused is None:
            estimate, log_det = bounds.estimated(
                programs, data, seed=seed, half_width=half_width, **calls
            )
            bound = bounds.bound_of(estimate, log_det, problem.dequantized_levels)
        else:
            pair = against_own(opened.reused, data, seed=seed, half_width=half_width, **calls)
            estimate, log_det, bound = pair.estimate, pair.log_det, pair.new
            self._say("\n".join([*opened.notes, pair.table]))
        if not self.lead:
            return
        if out is not None:
            rows = rows_of(self._by_datum(estimate, log_det, probabilities))
            write_atomically(out, csv_bytes(rows))
            print(f"the bound of each datum: {out}")
        for note in self._notes(bound, half_width):
            print(note)
        print(bound)

    def _by_datum(
        self, estimate: Estimate, log_det: Tensor, probabilities: Tensor | None
    ) -> dict[str, list[Any]]:
        """The bound on each datum in bits/dim with its Monte Carlo error, as columns.

        Both are empty for a datum that was never drawn.
        """
        problem, d = self.programs.problem, estimate.num_dims
        classes, levels = problem.class_names, problem.dequantized_levels
        name: Callable[[int], int | str] = int if classes is None else classes.__getitem__
        bits = bits_per_dim(
            estimate.per_datum, d, log_det=log_det.double().cpu(), num_levels=levels
        )
        numbers = bounds.some(problem.numbers("test"), len(self.data))
        columns: dict[str, list[Any]] = {"row": numbers.tolist()}
        if isinstance(problem.context, Labels) and self.data.context is not None:
            labels = self.data.context.tolist()
            columns["label"] = ["" if label < 0 else name(label) for label in labels]
        never = estimate.halves.isnan().all(0)  # drawn: the value is the baseline's prediction
        bits = bits.masked_fill(never.to(bits.device), math.nan)
        error = estimate.per_datum_error / (d * math.log(2))
        for suffix, values in {"": bits, "_standard_error": error}.items():
            cells = ["" if math.isnan(value) else value for value in values.tolist()]
            columns[f"bits_per_dim{suffix}"] = cells
        for c, column in enumerate([] if probabilities is None else probabilities.unbind(-1)):
            columns[f"probability_{name(c)}"] = column.tolist()
        return columns

    def _notes(self, bound: RunBound, half_width: float | None) -> list[str]:
        """Remarks on a bound, printed before it."""
        (problem, model, _), data, seed = self.programs, self.data, self.seed
        kind, notes = kind_of(model.diffusion), []
        if kind.simulated:
            draws = self.calls["draws"]
            notes.append(str(bounds.step_bias(self.programs, data, draws=draws, seed=seed)))
        if kind.simulated and bound.probe_error:
            error = bound.probe_error
            notes.append(f"Hutchinson's probes: {error:.4f} bits/dim of the next (nan for one)")
        if kind.path_gap:
            notes.append(bounds.path_gap(self.programs, data, seed=seed))
        error = bound.monte_carlo_error
        notes.append(f"Monte Carlo error {error:.4f} bits/dim (part of the ± below)")
        if half_width is not None:
            word = "reached" if Z95 * error <= half_width else "NOT reached"
            asked = f"± {half_width:g} bits/dim at 95%, for the noise alone"
            notes.append(f"{asked}, is {word}: ± {Z95 * error:.4f}")
        if isinstance(problem, Tabular):
            value, error = (model.num_dims * math.log(2) * number for number in bound.bits_per_dim)
            notes.append(f"log p of the entries of a row: at least {-value:.3f} ± {error:.3f} nats")
        if problem.context is not None:
            notes.append(f"of x given its {self.context_in_words}:")
        return notes

    def _classes(self) -> tuple[str, ClassPosterior]:
        """The accuracy of Bayes' rule from the bounds given each class, in words, and the
        posterior; data without labels are a ValueError."""
        problem, model, guide = self.programs
        if not isinstance(problem.context, Labels):
            raise ValueError(
                "--classify needs the bounds of data given each class; use a run with --condition "
                "labels, or leave it out"
            )
        x, log_det = bounds.in_model_space(self.programs, self.data, self.seed)
        train, labels = problem.part("train").context, self.data.context
        assert train is not None and labels is not None
        counts = train.bincount(minlength=problem.context.num_classes).double()
        prior = counts / counts.sum()
        posterior = class_posterior(model, guide, x, prior=prior, seed=self.seed, **self.calls)
        right, loss = posterior.accuracy(labels), posterior.log_loss(labels)
        d, levels = posterior.num_dims, problem.dequantized_levels
        bits = bits_per_dim(posterior.mixture, d, log_det=log_det, num_levels=levels)
        mixture = Measured.from_values(bits)
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


def print_rows(
    data: str,
    columns: Sequence[Column],
    out: Path | None,
    measure_rows: Callable[[pd.DataFrame, int], pd.DataFrame],
) -> None:
    """Measure the bound on rows of a new table, and print its mean.

    Args:
        data: the table, as for :func:`~inference.drawing.pieces.read_pieces`.
        columns: columns of the run.
        out: .csv file for the bound of each row.
        measure_rows: function of some rows and of their number among the pieces of the table, which
            returns the columns log_prob and standard_error, in nats.

    Raises:
        DataError: a table without rows, or one that cannot be read.
    """
    import pandas as pd

    pieces = [
        measure_rows(rows.table, k)
        for k, rows in enumerate(read_pieces(data, PIECE, text_columns(columns)))
    ]
    if not pieces:
        raise DataError(f"--data {data} has no row, expected one at least")
    rows = pd.concat(pieces)
    if out is not None:
        numbered = rows.reset_index(drop=True)
        write_atomically(out, numbered.to_csv(index_label="row").encode())
        print(f"the bound of each row: {out}")
    values = torch.tensor(rows["log_prob"].tolist())
    print(f"log p of the entries of a row: at least {Measured.from_values(values)} nats")


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
    problem, model, guide = bounds.given_contexts(programs, data)
    x, log_det = bounds.in_model_space(programs, data, seed)
    given = {"samples": samples, "seed": seed} | options
    weighted = log_likelihood(model, guide, x, method=method, progress=True, **given)
    assert isinstance(weighted, Weighted)
    value, error = bounds.in_bits(weighted, log_det, problem.dequantized_levels)
    single = weighted.bound.mean - weighted.mean  # nats, one weight − all
    gain = -single / (weighted.num_dims * math.log(2))
    words = f"{weighted.weights_in_words}; {gain:.3f} bits/dim below one weight; "
    note = words if samples > 1 else ""
    calls = f"{weighted.network_calls} network calls for each datum"
    with_error = f" ± {error:.3f}" if math.isfinite(error) else ""
    return f"bits/dim {value:.3f}{with_error} ({note}{calls})"
