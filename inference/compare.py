"""Runs compared with each other: the bound of each, and what is left of their difference.

    python -m inference.compare runs/cld runs/learned --out comparison

All runs are evaluated on the same data, at the same noise levels, with the same noise, so that what
they share cancels. As many network calls are made as a pilot says it takes to know every bound and
every difference to --half_width, as far as the noise goes. The folder holds

    bounds.csv        a row for each run
    differences.csv   a row for each pair of runs
    by_log_snr.csv    the diffusion term of each run by cell of log SNR
    comparison.png    a picture of the three
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from inference.bounds import Bound, baseline, bound_of
from inference.checkpoints import write_atomically
from inference.cli import check_positive, command_line
from inference.compare_figure import comparison_figure
from inference.loading import Programs, load_trained
from inference.names import short_name
from inference.output import Row, aligned, csv_bytes, png
from inference.processes import start
from inference.runs import RunError
from models import Problem
from models.base import ImageProblem
from models.files import spread
from models.kinds import kind_of
from pyro_mdm import evaluation
from pyro_mdm.evaluation.estimates import Z95, Comparison, Difference
from pyro_mdm.support.measured import ALL_TERMS, TERMS

__all__ = ["Entry", "Tables", "compare", "main", "open_runs", "report", "short_names", "tables"]

FILES = ("bounds.csv", "differences.csv", "by_log_snr.csv", "comparison.png")
PRINTED = 15
"""Differences that are printed; with more pairs, those from the best run."""

DIFFERENCE_COLUMNS = (
    "first",
    "second",
    "difference_bits_per_dim",
    "standard_error_bits_per_dim",
    "low_95_bits_per_dim",
    "high_95_bits_per_dim",
    "monte_carlo_half_width_95_bits_per_dim",
    *(f"{term}{of}_bits_per_dim" for term in ALL_TERMS for of in ("", "_standard_error")),
    "p_value",
    "resolved",
)
RANGE_TOLERANCE = 1e-3
"""How far the ends of log SNR of two runs may differ without a word about it."""


class Entry(NamedTuple):
    """A run to be compared."""

    name: str
    folder: Path
    programs: Programs
    guide: str
    score: str
    protocol: str | None
    training_steps: int

    @property
    def log_snr_range(self) -> tuple[float, float]:
        """λ(T), which is nominal for a simulated diffusion, and λ(ε)."""
        diffusion = self.programs.model.diffusion
        return diffusion.terminal_log_snr.item(), diffusion.max_log_snr

    @property
    def simulated(self) -> bool:
        """Whether the diffusion has no closed form."""
        return kind_of(self.programs.model.diffusion).simulated


class Tables(NamedTuple):
    """What the three CSV files hold, a mapping from column to value for each row.

    ``bounds`` is sorted by bits/dim, best first; ``differences`` are of first less second, in the
    order in which the runs were given. Numbers are bits/dim where their column's name ends so.
    """

    bounds: list[Row]
    differences: list[Row]
    by_log_snr: list[Row]


# -- what is compared ------------------------------------------------------------------------------


def short_names(folders: Sequence[Path]) -> list[str]:
    """A name for each folder: its last part, with as many parents as tell it from the others.

    Raises:
        RunError: a folder is given twice.
    """
    seen: dict[Path, Path] = {}
    for folder in folders:
        place = folder.resolve()
        if place in seen:
            raise RunError(
                f"{folder} is given twice (also as {seen[place]}); name each run once"
                if seen[place] != folder
                else f"{folder} is given twice; name each run once"
            )
        seen[place] = folder
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]
    names = []
    for mine in parts:
        k = 1
        while sum(other[-k:] == mine[-k:] for other in parts) > 1:
            k += 1
        names.append("/".join(mine[-k:]))
    return names


def open_runs(folders: Sequence[Path]) -> list[Entry]:
    """The runs in ``folders``, by short name, with their averaged weights.

    Raises:
        RunError: no folder, one given twice, or one that is no run; also as
            :func:`~inference.loading.load_trained`.
    """
    if not folders:
        raise RunError("no runs to compare; name at least one run folder")
    entries = []
    for name, folder in zip(short_names(folders), folders, strict=True):
        run, programs, checkpoint = load_trained(folder)
        config = run.config
        score = programs.problem.score_name(config["score"], programs.model.diffusion)
        guide, score = short_name(config["guide"]), short_name(score)
        entries.append(
            Entry(name, folder, programs, guide, score, config["protocol"], checkpoint.step)
        )
    return entries


def _shared_data(
    entries: Sequence[Entry], part: str, seed: int
) -> tuple[Tensor, Tensor, int | None]:
    """x (n, *event_shape) and log|det ∂x/∂w| (n,) of one part of the data, and its levels.

    Raises:
        RunError: that part is empty, or the runs were trained on different data.
    """

    def of(entry: Entry) -> tuple[Tensor, Tensor]:
        problem: Problem = entry.programs.problem
        x, log_det = problem.transform(getattr(problem, part), torch.Generator().manual_seed(seed))
        return x, log_det

    empty = [e.name for e in entries if not len(getattr(e.programs.problem, part))]
    if empty:
        raise RunError(
            f"{', '.join(empty)}: no {part} data, since trained without --holdout true; compare on "
            "--part test"
        )
    x, log_det = of(entries[0])
    levels = entries[0].programs.problem.dequantized_levels
    for entry in entries[1:]:
        other_x, other_log_det = of(entry)
        same = (
            entry.programs.problem.dequantized_levels == levels
            and torch.equal(other_x, x)
            and torch.equal(other_log_det, log_det)
        )
        if not same:
            raise RunError(
                f"{entry.name} and {entries[0].name} do not have the same {part} data, so their "
                f"bounds cannot be compared:\n  {_data(entries[0], part)}\n  {_data(entry, part)}\n"
                "Compare runs of one --model, --protocol and --split_seed with each other"
            )
    return x, log_det, levels


def _data(entry: Entry, part: str) -> str:
    problem = entry.programs.problem
    protocol = "" if entry.protocol is None else f", --protocol {entry.protocol}"
    shape = "×".join(map(str, problem.event_shape))
    number = len(getattr(problem, part))
    if (logit := getattr(problem, "dequantization", None)) is not None:
        protocol += f" --logit_margin {logit.margin:g}"
    if problem.rows is not None and problem.rows.seed is not None:
        protocol += f", --split_seed {problem.rows.seed}"
    return f"{entry.name}: model {problem.name}{protocol}, {number} {part} data of {shape}"


# -- tables ----------------------------------------------------------------------------------------


def tables(
    entries: Sequence[Entry],
    comparison: Comparison,
    log_det: Tensor | float = 0.0,
    levels: int | None = None,
) -> Tables:
    """The numbers of a comparison in bits/dim, as tables.

    Args:
        entries: the runs, named as in ``comparison``.
        log_det: log|det ∂x/∂w| (n,) in nats of the data as transformed;  levels: their number if
            noise made them continuous, else None. They count with the reconstruction, whose own
            standard error is then unknown (NaN).
    """
    bounds: list[Row] = []
    by_log_snr: list[Row] = []
    for entry in entries:
        estimate = comparison.estimates[entry.name]
        unit = estimate.num_dims * math.log(2)
        found = bound_of(estimate, log_det, levels)
        (value, error), (low, high) = found.bits_per_dim, entry.log_snr_range
        bounds.append(
            {
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
                "low_95_bits_per_dim": value - Z95 * error,
                "high_95_bits_per_dim": value + Z95 * error,
                "monte_carlo_half_width_95_bits_per_dim": Z95 * found.monte_carlo_error,
                **_by_term(found),
                "num_data": estimate.num_data,
                "network_calls_per_datum": estimate.network_calls / estimate.num_data,
            }
        )
        edges = estimate.log_snr_edges.tolist()
        cells = zip(
            itertools.pairwise(edges),
            (estimate.density / unit).tolist(),
            (estimate.density_error / unit).tolist(),
            strict=True,
        )
        by_log_snr += [
            {
                "run": entry.name,
                "log_snr_low": left,
                "log_snr_high": right,
                "diffusion_bits_per_dim": density * (right - left),
                "diffusion_bits_per_dim_per_log_snr": density,
                "monte_carlo_error_bits_per_dim_per_log_snr": density_error,
            }
            for (left, right), density, density_error in cells
        ]
    bounds.sort(key=lambda row: row["bits_per_dim"])
    return Tables(bounds, [_difference_row(d) for d in comparison.differences], by_log_snr)


def _by_term(found: Bound | Difference) -> Row:
    """The columns of the terms and their errors."""
    return {
        f"{term}{of}_bits_per_dim": number
        for term in ALL_TERMS
        for of, number in zip(("", "_standard_error"), getattr(found, term), strict=True)
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
    """A row of differences for second less first."""
    signed = ("difference_bits_per_dim", *(f"{term}_bits_per_dim" for term in ALL_TERMS))
    return row | {
        "first": row["second"],
        "second": row["first"],
        "low_95_bits_per_dim": 0.0 - row["high_95_bits_per_dim"],  # never -0.0
        "high_95_bits_per_dim": 0.0 - row["low_95_bits_per_dim"],
        **{name: 0.0 - row[name] for name in signed},
    }


# -- the report ------------------------------------------------------------------------------------


def report(found: Tables, comparison: Comparison, what: str, draws: int) -> str:
    """The tables as text for the terminal, with what their columns mean.

    Args:
        what: the data, such as "180 test images of digits".
        draws: the most network calls per datum and run for the diffusion term.
    """
    terms = ALL_TERMS if any(row["context_bits_per_dim"] for row in found.bounds) else TERMS
    parts = [f"{what}\n", _bounds_text(found.bounds, terms)]
    if found.differences:
        parts += ["", *_differences_text(found, terms)]
    parts += ["", *_notes(found, comparison, draws)]
    return "\n".join(parts)


TITLES = {"reconstruction": "recon.", "prior_kl": "prior KL"}
"""Of terms in printed tables; others go by their names."""


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


def _differences_text(found: Tables, terms: Sequence[str]) -> list[str]:
    """Differences of the worse less the better run, or from the best where pairs are many."""
    rank = {row["run"]: i for i, row in enumerate(found.bounds)}
    rows = [
        row if rank[row["first"]] > rank[row["second"]] else turned(row)
        for row in found.differences
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
            f"- {row['second']}",
            _signed(row["difference_bits_per_dim"]),
            f"[{_signed(row['low_95_bits_per_dim'])}, {_signed(row['high_95_bits_per_dim'])}]",
            f"{row['monte_carlo_half_width_95_bits_per_dim']:.4f}",
            *(_signed(row[f"{term}_bits_per_dim"]) for term in terms),
            "yes" if row["resolved"] else "no",
        )
        for row in rows
    ]
    return [aligned([header, *cells], left=(0, 1)), *note]


def _notes(found: Tables, comparison: Comparison, draws: int) -> list[str]:
    """The calls, what the signs mean, and a warning where ranges of log SNR differ."""
    n, runs = found.bounds[0]["num_data"], len(found.bounds)
    each = comparison.network_calls / (n * runs)
    calls = f"network calls: {comparison.network_calls:,} in all, {each:.1f} per datum and run"
    width = max(
        row["monte_carlo_half_width_95_bits_per_dim"] for row in found.bounds + found.differences
    )
    widest = f"the widest is ± {width:.4f}"
    if comparison.half_width is None:
        calls += f"; {widest}"
    elif comparison.reached:
        calls += f";\n± {comparison.half_width:g} is reached for all ({widest})"
    else:
        calls += (
            f";\n± {comparison.half_width:g} is NOT reached with --draws {draws} ({widest}): raise "
            "--draws, or if\nthey are not spent (the pilot foresaw too few), lower --half_width"
        )
    notes = [
        calls,
        f"± s.e.: standard error over the {n} data, the noise included. noise ±: half of the 95% "
        "interval that\nother noise for the same data would give; more network calls make it "
        "small, more data the rest.",
    ]
    if found.differences:
        many = len(found.differences)
        notes.append(
            "95% interval: over the data, paired, for that difference alone. resolved: not 0, by "
            f"Holm's procedure\nover all {many} differences at a family-wise error rate of 5%."
            if many > 1
            else "95% interval: over the data, paired. resolved: not 0, at the 5% level."
        )
    simulated = [row["run"] for row in found.bounds if row["simulated"]]
    if simulated:
        notes.append(
            f"simulated: {', '.join(simulated)}. The step of the simulation is an error that no ± "
            "holds (see\npyro_mdm.evaluation.simulated.step_size_bias), log SNR is a nominal noise "
            "level but for that at ε, and only sums of\nprior KL and diffusion term compare with "
            "those of others."
        )
    for side, what in (
        ("max", "where the decoder takes over, log SNR at ε,"),
        ("min", "what is left to the prior, log SNR at T,"),
    ):
        known = [row for row in found.bounds if side == "max" or not row["simulated"]]
        values = [row[f"log_snr_{side}"] for row in known]
        if values and max(values) - min(values) > RANGE_TOLERANCE:
            notes.append(
                f"warning: {what} is {min(values):.4g} to {max(values):.4g}: differences include "
                "that truncation, not\nthe diffusion and the network alone. To exclude it train "
                f"with one --{side}_log_snr."
            )
    return notes


def _signed(value: float) -> str:
    text = f"{value:+.4f}"
    return text if float(text) else "0.0000"


# -- the program -----------------------------------------------------------------------------------


def compare(
    runs: Sequence[Path],
    half_width: float | None = 0.01,
    draws: int = 64,
    part: Literal["test", "validation"] = "test",
    num_data: int | None = None,
    out: Path = Path("comparison"),
    batch_size: int = 256,
    seed: int = 0,
    overwrite: bool = False,
    accelerator: str = "auto",
) -> Comparison:
    """Compare the bounds of runs, with their averaged weights, on the same data and noise.

    The differences are printed, with 95% intervals and which of them are resolved from 0, and
    written with the bounds of each run as CSV and as a picture.

    Args:
        runs: run folders, of one --model and one --protocol; nothing in them is changed.
        half_width: network calls are made until every bound and every difference, in bits/dim, is
            within ± this at 95% as far as the noise goes; null for all the draws.
        draws: the most network calls per datum and run for the diffusion term.
        part: of the data; choose settings on validation, for which runs need --holdout true.
        num_data: the most data of that part, spread evenly over it; all by default.
        out: folder for bounds.csv, differences.csv, by_log_snr.csv and comparison.png.
        batch_size: data per network call.
        seed: of the noise.
        overwrite: replace a comparison in ``out``.
        accelerator: cpu, cuda, … or auto.

    Raises:
        RunError: no such run, one given twice, runs of different data, no such part of the data, or
            a comparison in the way.
        ValueError: as :func:`pyro_mdm.evaluation.compare`.
    """
    check_positive(draws=draws, batch_size=batch_size, half_width=half_width, num_data=num_data)
    _check_out(out, overwrite)
    device = start(accelerator).device
    entries = open_runs(runs)
    for entry in entries:
        entry.programs.model.to(device)
    x, log_det, levels = _shared_data(entries, part, seed)
    few = num_data is not None and num_data < len(x)
    chosen = spread(len(x), num_data) if few and num_data is not None else slice(None)
    x, log_det = x[chosen], log_det[chosen]
    pairs = {
        e.name: e.programs.given(e.programs.problem.part(part)[chosen].context)[1:] for e in entries
    }
    comparison = evaluation.compare(
        pairs,
        x.to(device),
        draws=draws,
        half_width=half_width,
        batch_size=batch_size,
        seed=seed,
        baseline=baseline([entry.programs for entry in entries]),
        progress=True,
    )
    problem = entries[0].programs.problem
    kind = "images" if isinstance(problem, ImageProblem) else "data"
    dequantized = "" if levels is None else " (dequantized)"
    what = f"{len(x)} {part} {kind} of {problem.name}{dequantized}"
    numbers = tables(entries, comparison, log_det, levels)
    print(report(numbers, comparison, f"{what}, seed {seed}", draws))
    print(*_of_given(entries), sep="\n", end="")
    _write(out, numbers, what)
    print(f"{out}: {', '.join(FILES)}")
    return comparison


def _write(out: Path, numbers: Tables, title: str) -> None:
    """Write the files of a comparison."""
    out.mkdir(parents=True, exist_ok=True)
    bounds, differences, by_log_snr = numbers
    contents = (
        csv_bytes(bounds, list(bounds[0])),
        csv_bytes(differences, DIFFERENCE_COLUMNS),
        csv_bytes(by_log_snr, list(by_log_snr[0])),
        png(comparison_figure(bounds, differences, by_log_snr, title=title)),
    )
    for name, content in zip(FILES, contents, strict=True):
        write_atomically(out / name, content)


def _of_given(entries: Sequence[Entry]) -> list[str]:
    """What the bounds are of, where data are given something in some runs."""
    names = [e.name for e in entries if e.programs.problem.context is not None]
    if not names:
        return []
    return [
        f"{', '.join(names)}: of data given what --condition says, which is less than of data "
        "alone. Of runs that\nare given different things, differences include what these tell.",
        "",
    ]


def _check_out(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise RunError(f"--out {out} is a file, expected a folder for the comparison")
    found = [name for name in FILES if (out / name).exists()]
    if found and not overwrite:
        raise RunError(
            f"{out} already holds {', '.join(found)}; replace them with --overwrite true, or give "
            "another --out"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: RUN … are as many words as there are, the rest as the signature says."""
    command_line(compare, arguments, unnamed="runs")


if __name__ == "__main__":
    main()
