"""The documentation's tables of posteriordb's posteriors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pyro_mdm.evaluation.weights import LEVEL
from tests.benchmarks.documented import seeds_in_words, write
from tests.benchmarks.posteriordb.base import Folder
from tests.benchmarks.posteriordb.fit import DRAWS
from tests.benchmarks.posteriordb.methods import METHODS
from tests.benchmarks.posteriordb.targets import POSTERIORS, Loaded

__all__ = ["of_posteriors"]

COMMAND = "python -m tests.benchmarks.posteriordb --folder posteriordb"
FEWEST = 100
"""Draws that count, below which weights are not trusted, as in ``AutoMDM.check``."""
LIMIT = min(0.7, 1 - 1 / math.log10(DRAWS))
"""The largest k̂ of weights that are trusted."""
RIGHT = 4.0
"""Standard errors of the evidence within which it is right."""
SLOPPY = 0.1
"""Nats that are added to these: what a Bayes factor does not show."""
FAR, WIDE = 8.0, 1e4
"""The distance of a mean from 0, and the condition number of the covariance, beyond which the
scales of a posterior are called raw."""


def of_posteriors(file: Path, of_truths: Path, root: Path, folder: Path) -> None:
    """posteriordb-scores, of each fit; posteriordb-methods, of methods over posteriors.

    Args:
        file: rows of fits.
        of_truths: rows of what references say by themselves.
        root: the folder of posteriordb.
        folder: where the tables go.
    """
    rows = pd.read_csv(file)
    truths = pd.read_csv(of_truths).set_index("posterior")
    shapes = {name: shape(name, Folder(root)) for name in rows.posterior.unique()}
    made = [
        cells_of(row, truths.loc[row["posterior"]], shapes[row["posterior"]])
        for name in POSTERIORS
        for method in METHODS
        for _, row in rows[(rows.posterior == name) & (rows.method == method)].iterrows()
    ]
    scores = pd.DataFrame(made)
    seconds = ", ".join(f"{s:g}" for s in sorted(rows.seconds.unique()))
    methods = " ".join(name for name in METHODS if name in set(rows.method))
    commands = [
        f"{COMMAND} --seconds {seconds} --methods {methods}",
        f"{COMMAND} --truths runs/truths.csv",
    ]
    trust = (
        f"weights are trusted where {FEWEST} draws count, and k̂ is at most {LIMIT:.2f} or no "
        f"weight is more than {LEVEL:g} times the mean"
    )

    def save(name: str, made: pd.DataFrame, *notes: str, digits: int = 3) -> None:
        target = folder / f"posteriordb-{name}.csv"
        write(target, made, commands, seeds_in_words(rows), notes=notes, digits=digits)

    save(
        "scores",
        scores.drop(columns=["is_trusted", "is_within", "is_right", "is_raw"]),
        "gap is log Z of the reference − ELBO, and log_z_error is log Z − that of the reference, "
        "nats; energy is the squared energy distance of draws that are resampled by their "
        "weights, and noise what that of as many perfect draws exceeds once in a hundred times",
        "farthest is the largest mean of a latent, and condition that of the covariance",
        digits=4,
    )
    groups = {
        "all": scores,
        "of raw scales": scores[scores.is_raw],
        "of other scales": scores[~scores.is_raw],
    }
    counts = [
        summed(group, name, part[part.method == name])
        for group, part in groups.items()
        for name in METHODS
        if (part.method == name).any()
    ]
    whole = {"trusted": "Int64", "right_evidence": "Int64"}  # NUTS has no weights
    save(
        "methods",
        pd.DataFrame(counts).astype(whole),
        f"{trust}; evidence is right within {RIGHT:g} standard errors and {SLOPPY} nats",
        f"scales are raw where a mean is farther than {FAR:g} from 0 or the condition number of "
        f"the covariance is above {WIDE:,.0f}; number is that of posteriors on which the method "
        "ended, and medians are over these",
        digits=2,
    )


def shape(name: str, folder: Folder) -> dict[str, float]:
    """How far from 0 a posterior is, and how far from round."""
    x = Loaded(name, folder).draws
    return {
        "farthest": float(x.mean(0).abs().max()),
        "condition": float(torch.linalg.cond(x.T.cov())),
    }


def cells_of(row: Any, truth: Any, shape: dict[str, float]) -> dict[str, Any]:
    """The cells of a fit."""
    has_weights = not math.isnan(row["ess"])
    error = math.sqrt(max(0.0, 1 / row["ess"] - 1) / DRAWS) if has_weights else math.nan
    se = math.hypot(error, truth["log_z_se"])
    off = row["log_z"] - truth["log_z"]
    no_tail = row["largest"] <= LEVEL or not row["k_hat"] > LIMIT
    trusted = bool(no_tail and row["ess"] * DRAWS >= FEWEST)
    raw = shape["farthest"] > FAR or shape["condition"] > WIDE
    return {
        "posterior": row["posterior"],
        "method": row["method"],
        "gap": truth["log_z"] - row["elbo"],
        "gap_se": math.hypot(row["elbo_se"], truth["log_z_se"]) if has_weights else math.nan,
        "log_z_error": off,
        "log_z_error_se": se if has_weights else math.nan,
        "ess": row["ess"],
        "k_hat": row["k_hat"],
        "energy": row["energy"],
        "noise": truth["noise"],
        "fit_seconds": row["fit_seconds"],
        "updates": row["updates"],
        "farthest": shape["farthest"],
        "condition": shape["condition"],
        "is_trusted": trusted,
        "is_within": row["energy"] <= truth["noise"],
        "is_right": trusted and abs(off) <= RIGHT * se + SLOPPY,
        "is_raw": raw,
    }


def summed(group: str, method: str, of: pd.DataFrame) -> dict[str, Any]:
    """A method over posteriors: numbers of these, and medians."""
    weighted = bool(of.ess.notna().any())
    return {
        "posteriors": group,
        "method": method,
        "number": len(of),
        "trusted": int(of.is_trusted.sum()) if weighted else None,
        "right_evidence": int(of.is_right.sum()) if weighted else None,
        "within_noise": int(of.is_within.sum()),
        "median_gap": of.gap.median(),
        "median_ess": of.ess.median(),
        "median_seconds": of.fit_seconds.median(),
    }
