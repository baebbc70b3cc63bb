"""The numbers of a comparison of runs as tables, for files and the terminal."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from inference.folders.output import Row, aligned
from inference.measuring.bounds import RunBound, bound_of
from inference.measuring.compared_runs import Entry
from pyro_mdm.evaluation.estimates import Comparison, Difference, Estimate
from pyro_mdm.support.measured import ALL_TERMS, TERMS, Z95, Measured

PRINTED = 15
"""The most differences that are printed; with more pairs, those from the best run."""

DIFFERENCE_COLUMNS = (
    "first",
    "second",
    "difference_bits_per_dim",
    "standard_error_bits_per_dim",
    "low_95_bits_per_dim",
    "high_95_bits_per_dim",
    "monte_carlo_half_width_95_bits_per_dim",
    *(f"{term}{suffix}_bits_per_dim" for term in ALL_TERMS for suffix in ("", "_standard_error")),
    "p_value",
    "resolved",
)
RANGE_TOLERANCE = 1e-3
"""The difference between two runs' ends of log SNR above which there is a note."""


class Tables(NamedTuple):
    """Rows of the three CSV files, each a mapping from column to value.

    ``bounds`` is sorted by bits/dim, best first; ``differences`` are first − second, in the
    order in which the runs were given. Numbers are bits/dim where their column's name ends so.
    """

    bounds: list[Row]
    differences: list[Row]
    by_log_snr: list[Row]


def tables(
    entries: Sequence[Entry],
    comparison: Comparison,
    log_det: Tensor | float = 0.0,
    levels: int | None = None,
) -> Tables:
    """The numbers of a comparison in bits/dim, as tables.

    Args:
        entries: the runs, named as in ``comparison``.
        log_det: log|det ∂x/∂w| (n,) of the data as transformed, in nats.
        levels: the number of levels of dequantized data, else None. Both belong to the
            reconstruction, whose own standard error is then unknown (NaN).
    """
    bounds: list[Row] = []
    by_log_snr: list[Row] = []
    for entry in entries:
        estimate = comparison.estimates[entry.name]
        bounds.append(_bound_row(entry, estimate, bound_of(estimate, log_det, levels)))
        by_log_snr += _cell_rows(entry.name, estimate)
    bounds.sort(key=lambda row: row["bits_per_dim"])
    return Tables(bounds, [_difference_row(d) for d in comparison.differences], by_log_snr)


def _bound_row(entry: Entry, estimate: Estimate, bound: RunBound) -> Row:
    (value, error), (low, high) = bound.bits_per_dim, entry.log_snr_range
    interval = Measured(value, error).interval
    return {
        "run": entry.name,
        "folder": str(entry.folder),
        "guide": entry.guide,
        "num_variables": entry.programs.model.diffusion.num_variables,
        "score": entry.score,
        "simulated": entry.simulated,
        "training_steps": entry.training_steps,
        "log_snr_min": low,
        "log_snr_max": high,
        "bits_per_dim": value,
        "standard_error_bits_per_dim": error,
        "low_95_bits_per_dim": interval[0],
        "high_95_bits_per_dim": interval[1],
        "monte_carlo_half_width_95_bits_per_dim": Z95 * bound.monte_carlo_error,
        **_by_term(bound),
        "num_data": estimate.num_data,
        "network_calls_per_datum": estimate.network_calls / estimate.num_data,
    }


def _cell_rows(run: str, estimate: Estimate) -> list[Row]:
    """The diffusion term of a run by cell of log SNR."""
    unit = estimate.num_dims * math.log(2)
    cells = zip(
        itertools.pairwise(estimate.log_snr_edges.tolist()),
        (estimate.density / unit).tolist(),
        (estimate.density_error / unit).tolist(),
        strict=True,
    )
    return [
        {
            "run": run,
            "log_snr_low": low,
            "log_snr_high": high,
            "diffusion_bits_per_dim": density * (high - low),
            "diffusion_bits_per_dim_per_log_snr": density,
            "monte_carlo_error_bits_per_dim_per_log_snr": error,
        }
        for (low, high), density, error in cells
    ]


def _by_term(bound: RunBound | Difference) -> Row:
    """The columns of the terms and their errors."""
    return {
        f"{term}{suffix}_bits_per_dim": number
        for term in ALL_TERMS
        for suffix, number in zip(("", "_standard_error"), getattr(bound, term), strict=True)
    }


def _difference_row(difference: Difference) -> Row:
    return {
        "first": difference.first,
        "second": difference.second,
        "difference_bits_per_dim": difference.bits_per_dim[0],
        "standard_error_bits_per_dim": difference.bits_per_dim[1],
        "low_95_bits_per_dim": difference.interval[0],
        "high_95_bits_per_dim": difference.interval[1],
        "monte_carlo_half_width_95_bits_per_dim": Z95 * difference.monte_carlo_error,
        **_by_term(difference),
        "p_value": difference.p_value,
        "resolved": difference.resolved,
    }


def turned(row: Row) -> Row:
    """A row of differences for second − first."""
    signed = ("difference_bits_per_dim", *(f"{term}_bits_per_dim" for term in ALL_TERMS))
    return row | {
        "first": row["second"],
        "second": row["first"],
        "low_95_bits_per_dim": 0.0 - row["high_95_bits_per_dim"],  # never -0.0
        "high_95_bits_per_dim": 0.0 - row["low_95_bits_per_dim"],
        **{name: 0.0 - row[name] for name in signed},
    }


# -- the report ------------------------------------------------------------------------------------


def report(numbers: Tables, comparison: Comparison, what: str, draws: int) -> str:
    """The tables as text for the terminal, with what their columns mean.

    Args:
        what: the data, such as "180 test images of digits".
        draws: the most network calls per datum and run for the diffusion term.
    """
    terms = ALL_TERMS if any(row["context_bits_per_dim"] for row in numbers.bounds) else TERMS
    parts = [f"{what}\n", _bounds_text(numbers.bounds, terms)]
    if numbers.differences:
        parts += ["", *_differences_text(numbers, terms)]
    parts += ["", *_notes(numbers, comparison, draws)]
    return "\n".join(parts)


TITLES = {"reconstruction": "recon.", "prior_kl": "prior KL"}
"""Titles of terms in printed tables; others go by their names."""


def _titles(terms: Sequence[str]) -> list[str]:
    return [TITLES.get(term, term) for term in terms]


def _bounds_text(bounds: Sequence[Row], terms: Sequence[str]) -> str:
    header = (
        *("run", "guide", "K", "score", "log SNR", "bits/dim ± s.e.", "noise ±"),
        *(*_titles(terms), "calls", "steps"),
    )
    rows = [
        (
            row["run"],
            row["guide"],
            str(row["num_variables"]),
            row["score"],
            f"{row['log_snr_min']:.1f} to {row['log_snr_max']:.1f}",
            f"{row['bits_per_dim']:.4f} ± {row['standard_error_bits_per_dim']:.4f}",
            f"{row['monte_carlo_half_width_95_bits_per_dim']:.4f}",
            *(f"{row[f'{term}_bits_per_dim']:.4f}" for term in terms),
            f"{row['network_calls_per_datum']:.1f}",
            str(row["training_steps"]),
        )
        for row in bounds
    ]
    return aligned([header, *rows], left=(0, 1, 3))


def _differences_text(numbers: Tables, terms: Sequence[str]) -> list[str]:
    """Differences, the worse − the better run, or from the best where pairs are many."""
    rank = {row["run"]: i for i, row in enumerate(numbers.bounds)}
    rows = [
        row if rank[row["first"]] > rank[row["second"]] else turned(row)
        for row in numbers.differences
    ]
    rows.sort(key=lambda row: (rank[row["second"]], rank[row["first"]]))
    note = []
    if len(rows) > PRINTED:
        best = [row for row in rows if rank[row["second"]] == 0]
        note = [f"({len(best[:PRINTED])} of {len(rows)} differences; differences.csv has all)"]
        rows = best[:PRINTED]
    header = (
        *("difference (bits/dim)", "", "", "95% interval", "noise ±"),
        *(*_titles(terms), "resolved"),
    )
    cells = [
        (
            row["first"],
            f"− {row['second']}",
            _signed(row["difference_bits_per_dim"]),
            f"[{_signed(row['low_95_bits_per_dim'])}, {_signed(row['high_95_bits_per_dim'])}]",
            f"{row['monte_carlo_half_width_95_bits_per_dim']:.4f}",
            *(_signed(row[f"{term}_bits_per_dim"]) for term in terms),
            "yes" if row["resolved"] else "no",
        )
        for row in rows
    ]
    return [aligned([header, *cells], left=(0, 1)), *note]


def _notes(numbers: Tables, comparison: Comparison, draws: int) -> list[str]:
    """The number of calls, the meaning of signs, and a warning where log SNR ranges differ."""
    n, bounds = numbers.bounds[0]["num_data"], numbers.bounds
    notes = [
        _calls(numbers, comparison, draws),
        f"± s.e.: standard error over the {n} data, including the noise. noise ±: half-width of "
        "the 95% interval\nfor the noise alone, with the same data; more network calls reduce it, "
        "and more data the rest.",
    ]
    if numbers.differences:
        many = len(numbers.differences)
        notes.append(
            "95% interval: over the data, paired, for that difference alone. resolved: not 0, by "
            f"Holm's procedure\nover all {many} differences at a family-wise error rate of 5%."
            if many > 1
            else "95% interval: over the data, paired. resolved: not 0, at the 5% level."
        )
    if simulated := [row["run"] for row in bounds if row["simulated"]]:
        notes.append(
            f"simulated: {', '.join(simulated)}. The step of the simulation causes an error "
            "that is in no ±\n(see pyro_mdm.simulated.step_size_bias). Except at ε, log SNR is a "
            "nominal noise level, and only sums\nof prior KL and diffusion term can be compared "
            "with those of others."
        )
    for side, what in (
        ("max", "the log SNR at ε, where the decoder takes over,"),
        ("min", "the log SNR at T, where the prior begins,"),
    ):
        comparable = [row for row in bounds if side == "max" or not row["simulated"]]
        values = [row[f"log_snr_{side}"] for row in comparable]
        if values and max(values) - min(values) > RANGE_TOLERANCE:
            notes.append(
                f"warning: {what} is {min(values):.4g} to {max(values):.4g}: differences include "
                "this truncation,\nand not only the diffusion and the network. To exclude it, "
                f"train all runs with the same --{side}_log_snr."
            )
    return notes


def _calls(numbers: Tables, comparison: Comparison, draws: int) -> str:
    """The number of network calls, and whether they were enough, in words."""
    per_datum = comparison.network_calls / (numbers.bounds[0]["num_data"] * len(numbers.bounds))
    calls = f"network calls: {comparison.network_calls:,} in all, {per_datum:.1f} per datum and run"
    width = max(
        row["monte_carlo_half_width_95_bits_per_dim"]
        for row in numbers.bounds + numbers.differences
    )
    widest = f"the widest is ± {width:.4f}"
    if comparison.half_width is None:
        return f"{calls}; {widest}"
    if comparison.reached:
        return f"{calls};\n± {comparison.half_width:g} is reached for all ({widest})"
    return (
        f"{calls};\n± {comparison.half_width:g} is NOT reached with --draws {draws} ({widest}): "
        "raise --draws, or if\nthey are not used up (the pilot planned too few), lower --half_width"
    )


def _signed(value: float) -> str:
    text = f"{value:+.4f}"
    return text if float(text) else "0.0000"


def on_contexts(entries: Sequence[Entry]) -> str | None:
    """A note where some bounds are on data given a context."""
    names = [e.name for e in entries if e.programs.problem.context is not None]
    if not names:
        return None
    return (
        f"{', '.join(names)}: bounds on data given the context of --condition, which take fewer "
        "bits than data alone.\nDifferences of runs with different contexts include the "
        "information in these."
    )
