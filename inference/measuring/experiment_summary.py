"""Tables of an experiment's runs over seeds, and figures of how learned diffusions moved.

The runs of one score and seed are compared in pairs by :mod:`inference.compare`, whose files stay
in ``comparisons/<score>-<seed>``. The summary has, for every score and guide, the mean bound over
seeds with its standard error, and the mean difference to the first guide of the same seed. Its 95%
interval is for other seeds and images: Student's t with the error over seeds, and the normal one
over images, added as squares. (The latter contains the noise once more: the interval is a little
wide.) A difference is resolved if its interval excludes 0. The gain of learning, the difference of
a learned guide to the diffusion it started as, is treated alike. The bias of a simulation's step,
which runs measure at their end, is not included.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from inference.folders.checkpoints import write_together
from inference.folders.output import Row, csv_bytes, png
from inference.folders.records import read_lines, read_sealed
from pyro_mdm.support.files import regular
from pyro_mdm.support.measured import Measured

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TERMS = ("bits_per_dim", "reconstruction_bits_per_dim", "prior_kl_bits_per_dim")


def summarize(
    folder: Path,
    guides: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    compare: Callable[..., object],
    starts: Mapping[str, str] | None = None,
    fixed: Sequence[str] = (),
) -> list[Row]:
    """Compare the runs ``<score>-<guide>-<seed>`` in ``folder`` and write a summary.

    Writes summary.csv, summary.md and, where diffusions were learned, movement.png. A finished
    comparison of all these runs is not repeated.

    Args:
        guides: the guides of each score; all are compared with the first.
        compare: function of run folders, ``out`` and ``seed``: :func:`inference.compare.compare`.
        starts: guide that each learned guide starts as, by its name.
        fixed: guides beside which the others, which are learned, are set one by one, in learned.csv
            and learned.md.
    """
    starts = starts or {}
    for score, names in guides.items():
        for seed in seeds:
            out = folder / "comparisons" / f"{score}-{seed}"
            runs = [folder / f"{score}-{guide}-{seed}" for guide in names]
            if not _holds(out, runs):
                compare(runs, out=out, seed=seed)
    rows = summary_rows(folder, guides, seeds, starts)
    contents = {"summary.csv": csv_bytes(rows), "summary.md": markdown(rows).encode()}
    if fixed:
        beside = learned_rows(folder, guides, seeds, fixed)
        contents |= {"learned.csv": csv_bytes(beside)}
        contents |= {"learned.md": learned_markdown(beside).encode()}
    moved = {
        score: [
            guide
            for guide in names
            if "learned" in guide
            and not guide.startswith("learned1")
            and guide not in starts.values()
            and _entries(folder / f"{score}-{guide}-{seeds[0]}")
        ]
        for score, names in guides.items()
    }
    if any(moved.values()):
        figure = movement_figure(folder, moved, seeds)
        contents |= {"movement.png": png(figure)}
    write_together({folder / name: data for name, data in contents.items()})
    return rows


def summary_rows(
    folder: Path,
    guides: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    starts: Mapping[str, str] | None = None,
) -> list[Row]:
    """A row for each score and guide, in bits/dim, with standard errors.

    ``difference`` is to the first guide, paired by seed and noise; ``difference_images`` its
    standard error over test images for one seed, noise included (mean over seeds); ``gain`` is the
    difference to ``start``, the guide that it started as, NaN where ``starts`` has none;
    ``half_the_step`` is the change by half the step of a simulation, NaN where not measured.
    """
    rows = []
    for score, of_score in guides.items():
        read = [_comparison(folder / "comparisons" / f"{score}-{seed}") for seed in seeds]
        for guide in of_score:
            names = [f"{score}-{guide}-{seed}" for seed in seeds]
            bounds = [b[name] for (b, _), name in zip(read, names, strict=True)]
            row: Row = {"score": score, "guide": guide, "seeds": len(seeds)}
            row |= {end: statistics.fmean(b[end] for b in bounds) for end in ENDS}
            for term in TERMS:
                row[term] = statistics.fmean(b[term] for b in bounds)
            row["standard_error"] = _error([b["bits_per_dim"] for b in bounds])
            row["standard_error_images"] = statistics.fmean(
                b["standard_error_bits_per_dim"] for b in bounds
            )
            start = (starts or {}).get(guide, "")
            row["start"] = start if start in of_score else ""
            for name, other in (("difference", of_score[0]), ("gain", row["start"])):
                others = [f"{score}-{other}-{seed}" if other else "" for seed in seeds]
                row |= _difference(read, names, others, name)
            changes = [_step_bias(folder / name) for name in names]
            row["half_the_step"] = statistics.fmean(changes)
            row["half_the_step_standard_error"] = _error(changes)
            row["values"] = " ".join(f"{b['bits_per_dim']:.4f}" for b in bounds)
            rows.append(row)
    return rows


ENDS = ("log_snr_min", "log_snr_max")


def _difference(
    read: Sequence[tuple[dict[str, Row], list[Row]]],
    firsts: Sequence[str],
    seconds: Sequence[str],
    name: str,
) -> Row:
    """The mean of first - second over seeds, with its errors and interval, as columns ``name…``."""
    pairs = [_pair(d, a, b) for (_, d), a, b in zip(read, firsts, seconds, strict=True)]
    values = [value for value, _ in pairs]
    mean, error = statistics.fmean(values), _error(values)
    images = statistics.fmean(error for _, error in pairs)
    low, high = Measured(mean, math.hypot(error, images)).interval
    row: Row = {name: mean, f"{name}_standard_error": error, f"{name}_images": images}
    return row | {f"{name}_low_95": low, f"{name}_high_95": high}


def learned_rows(
    folder: Path, guides: Mapping[str, Sequence[str]], seeds: Sequence[int], fixed: Sequence[str]
) -> list[Row]:
    """A row for each learned guide and each fixed one: the difference of their bounds, learned less
    fixed, in bits/dim, with the intervals of :func:`summary_rows`."""
    rows = []
    for score, of_score in guides.items():
        read = [_comparison(folder / "comparisons" / f"{score}-{seed}") for seed in seeds]
        for guide in of_score:
            for other in fixed if guide not in fixed else ():
                ours = [f"{score}-{guide}-{seed}" for seed in seeds]
                theirs = [f"{score}-{other}-{seed}" for seed in seeds]
                row: Row = {"score": score, "learned": guide, "fixed": other, "seeds": len(seeds)}
                rows.append(row | _difference(read, ours, theirs, "difference"))
    return rows


def learned_markdown(rows: Sequence[Row]) -> str:
    """Does a learned diffusion match or surpass fixed ones? A table, and the answer in words."""
    lines = [
        "| learned | fixed | learned − fixed, bits/dim (95% interval) | the learned one |",
        "|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["difference_low_95"], row["difference_high_95"]
        if math.isnan(low):
            words = "one seed cannot tell"
        elif high < 0:
            words = "surpasses it"
        elif low > 0:
            words = "falls behind"
        else:
            words = f"matches it within {max(-low, high):.3f}"
        names = f"| {row['learned']} | {row['fixed']} |"
        lines.append(f"{names} {_interval(row, 'difference')} | {words} |")
    return "\n".join(lines) + "\n"


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, and a second table of the gains of learning."""
    simulated = any(not math.isnan(row["half_the_step"]) for row in rows)
    lines = [
        "| score | guide | log SNR | test bits/dim ± s.e. over seeds | prior KL | "
        f"row − {rows[0]['guide']} (95% interval) |" + " half step − whole |" * simulated,
        "|---|---|---|---|---|---|" + "---|" * simulated,
    ]
    for row in rows:
        difference = "0" if row["guide"] == rows[0]["guide"] else _interval(row, "difference")
        lines.append(
            f"| {row['score']} | {row['guide']} | {row['log_snr_min']:.1f} to "
            f"{row['log_snr_max']:.1f} | {_with_error(row)} | "
            f"{row['prior_kl_bits_per_dim']:.4f} | {difference} |"
        )
        if simulated:
            change, error = row["half_the_step"], row["half_the_step_standard_error"]
            lines[-1] += " - |" if math.isnan(change) else f" {change:+.4f} ± {error:.4f} |"
    learned = [row for row in rows if row["start"]]
    if learned:
        lines += [
            "",
            "| score | learned | started as | row − its start (95% interval) |",
            "|---|---|---|---|",
        ]
    for row in learned:
        names = f"| {row['score']} | {row['guide']} | {row['start']} |"
        lines.append(f"{names} {_interval(row, 'gain')} |")
    return "\n".join(lines) + "\n"


def _with_error(row: Row) -> str:
    """A bound with its standard error over seeds, without one of a single seed."""
    error = row["standard_error"]
    return f"{row['bits_per_dim']:.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")


def _interval(row: Row, name: str) -> str:
    """A difference with its 95% interval, bold where that excludes 0."""
    low, high = row[f"{name}_low_95"], row[f"{name}_high_95"]
    if math.isnan(low):
        return f"{row[name]:+.3f} (one seed)"
    text = f"{row[name]:+.3f} ({low:+.3f} to {high:+.3f})"
    return f"**{text}**" if low > 0 or high < 0 else text


def movement_figure(
    folder: Path, guides: Mapping[str, Sequence[str]], seeds: Sequence[int]
) -> Figure:
    """Entries of the learned Q and D over training by score, a line for each seed."""
    from matplotlib.figure import Figure

    guides = {score: names for score, names in guides.items() if names}
    columns = max(map(len, guides.values()))
    figure = Figure((3.3 * columns + 0.5, 3.0 * len(guides)), dpi=110, layout="constrained")
    panels = figure.subplots(len(guides), columns, squeeze=False)
    for line, (score, of_score) in enumerate(guides.items()):
        for axes in panels[line, len(of_score) :]:
            axes.remove()
        for column, guide in enumerate(of_score):
            axes = panels[line, column]
            colors: dict[str, str] = {}
            for seed in seeds:
                run = folder / f"{score}-{guide}-{seed}"
                for name, (steps, values) in _entries(run).items():
                    label = None if name in colors else name
                    color = colors.setdefault(name, f"C{len(colors) % 10}")
                    style = "-" if name.startswith("Q") else "--"
                    axes.plot(steps, values, style, color=color, lw=1.2, alpha=0.8, label=label)
            axes.axhline(0.0, color="0.8", lw=0.8, zorder=0)
            axes.set_title(f"{score}, {guide}", fontsize=10)
            axes.legend(fontsize=6, ncols=3, loc="best")
            axes.set_xlabel("training step")
    figure.supylabel("entries of Q (solid) and D (dashed)", fontsize=10)
    return figure


def _entries(run: Path) -> dict[str, tuple[list[int], list[float]]]:
    """The entries of D and Q by step, without those below the diagonal, from a run's history."""
    entries: dict[str, tuple[list[int], list[float]]] = {}
    for record in read_lines(run / "history.jsonl", {"step", "Q", "D"}):
        for matrix, first in (("D", 0), ("Q", 1)):
            for i, row in enumerate(record[matrix]):
                for j in range(i + first, len(row)):
                    steps, values = entries.setdefault(f"{matrix}[{i}{j}]", ([], []))
                    steps.append(record["step"])
                    values.append(row[j])
    return entries


def _holds(out: Path, runs: Sequence[Path]) -> bool:
    """Whether a finished comparison has all these runs."""
    if not (out / "comparison.png").exists():
        return False
    return {run.name for run in runs} <= _comparison(out)[0].keys()


def _comparison(out: Path) -> tuple[dict[str, Row], list[Row]]:
    """bounds.csv by run, and differences.csv."""

    def read(name: str) -> list[Row]:
        with open(regular(out / name), newline="") as file:
            return [{k: _number(v) for k, v in row.items()} for row in csv.DictReader(file)]

    return {row["run"]: row for row in read("bounds.csv")}, read("differences.csv")


def _step_bias(run: Path) -> float:
    """The change by half the step in a run's bound, bits/dim; NaN if it was not measured."""
    results = run / "results.json"
    bias = read_sealed(results).get("step_bias") if results.is_file() else None
    return bias["change"] if bias else math.nan


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _pair(differences: Sequence[Row], first: str, second: str) -> tuple[float, float]:
    """``first`` − ``second`` in bits/dim with its error over images; NaN without a second."""
    if first == second:
        return 0.0, 0.0
    if not second:
        return math.nan, math.nan
    for row in differences:
        error = row["standard_error_bits_per_dim"]
        if (row["first"], row["second"]) == (first, second):
            return row["difference_bits_per_dim"], error
        if (row["first"], row["second"]) == (second, first):
            return -row["difference_bits_per_dim"], error
    raise LookupError(f"no difference of {first} and {second}")


def _error(values: Sequence[float]) -> float:
    """The standard error of the mean; NaN for one value, or of NaN."""
    return Measured.from_values(torch.tensor(values)).standard_error
