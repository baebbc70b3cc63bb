"""Are the auxiliary variables used by trained scores? And the information in paths; run by hand.

    python -m tests.benchmarks.auxiliary --runs runs/auxiliary --tables docs/measured/data

Trains CLD and learned diffusions of two and three variables on digits, with noise predictions and
with denoisers, as in the table ``digits`` of :mod:`inference.experiment`, where runs that are
finished are kept. Then it measures what :func:`pyro_mdm.auxiliary.auxiliary_use` defines on the
test images, for a law of Gaussian data with the mean and covariance of the training images, and
what :func:`pyro_mdm.auxiliary.auxiliary_information` says of the diffusions themselves.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from inference.experiment import TABLES, Cell, train_all
from inference.folders.loading import load_trained
from pyro_mdm import ALDA, CLD, MALDA, LearnedDiffusion, LinearDiffusion
from pyro_mdm.auxiliary import (
    AuxiliaryUse,
    GaussianPosterior,
    auxiliary_information,
    auxiliary_use,
)
from tests.benchmarks.documented import mean_and_error, write

SCORES, GUIDES = ("noise", "denoiser"), ("cld", "learned2", "learned3")
START, LEVELS = 9.0, (9.0, 6.0, 3.0, 0.0, -3.0)
MEASURED = {
    "diffusion_term": "diffusion",
    "lost_without_v": "loss_x_alone",
    "lost_with_z_alone": "loss_z_alone",
    "joint_decoder_loss": "joint_loss",
    "joint_decoder_gap": "start_gap",
}
"""Columns, and the numbers of :class:`AuxiliaryUse` that they hold."""


def cells(seeds: int) -> list[Cell]:
    """The runs that are measured, seed by seed."""
    chosen = TABLES["digits"].cells()
    return [
        cell
        for cell in chosen
        if cell.score in SCORES and cell.guide in GUIDES and cell.seed < seeds
    ]


def measured(folder: Path, draws: int) -> tuple[AuxiliaryUse, LinearDiffusion]:
    """What a run makes of its auxiliary variables, on its test images."""
    _, (problem, model, guide), _ = load_trained(folder)
    law = GaussianPosterior.fit(problem.to_model_space(problem.train))
    x = problem.to_model_space(problem.test)
    use = auxiliary_use(model, guide, x, draws=draws, posterior=law)
    print(f"{folder.name}: {use}", flush=True)
    return use, model.diffusion


def over_seeds(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Means over seeds with their standard errors."""

    def row(group: pd.DataFrame) -> dict[str, float]:
        found: dict[str, float] = {}
        for column in group.columns.difference([*by, "seed"], sort=False):
            found[column], found[f"{column}_se"] = mean_and_error(group[column])
        return found

    groups = rows.groupby(by, sort=False)
    return pd.DataFrame([dict(zip(by, key, strict=True)) | row(g) for key, g in groups])


def told(diffusion: LinearDiffusion, variances: Tensor) -> dict[str, float]:
    """Bits/dim that v tells beyond x_s where log SNR is LEVELS, by column."""
    with torch.no_grad():
        s = diffusion.time_at_log_snr(torch.tensor(LEVELS, dtype=torch.float64))
    nats = auxiliary_information(diffusion, s, variances).nats
    return {
        f"at_log_snr_{level:g}".replace("-", "minus_"): value / math.log(2)
        for level, value in zip(LEVELS, nats.tolist(), strict=True)
    }


def presets() -> Iterator[tuple[str, LinearDiffusion]]:
    """Diffusions before any training."""
    yield "cld", CLD(max_log_snr=START)
    yield "malda", MALDA(max_log_snr=START)
    yield "alda", ALDA(max_log_snr=START)
    for K in (2, 3):
        yield f"learned{K} at its start", LearnedDiffusion(K, max_log_snr=START, min_log_snr=-10.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=Path, default=Path("runs/auxiliary"), help="their folder")
    parser.add_argument("--tables", type=Path, default=Path("docs/measured/data"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=64, help="for each image")
    options = parser.parse_args()
    torch.set_num_threads(1)
    train_all(cells(options.seeds), options.runs, 1)
    rows: list[dict[str, Any]] = []
    paths: list[dict[str, Any]] = []
    variances = torch.ones(1)
    for cell in cells(options.seeds):
        use, diffusion = measured(options.runs / cell.name, options.draws)
        bits = use.in_bits()
        # rounded as the file is, so that no number is -0.0000
        row = {column: round(bits[name].mean, 4) + 0.0 for column, name in MEASURED.items()}
        rows.append({"score": cell.score, "diffusion": cell.guide, "seed": cell.seed, **row})
        if cell.score == SCORES[0]:
            problem = load_trained(options.runs / cell.name)[1].problem
            variances = GaussianPosterior.fit(problem.to_model_space(problem.train)).variances
            if cell.guide != "cld":
                name = f"{cell.guide} after training"
                paths.append({"diffusion": name, "seed": cell.seed, **told(diffusion, variances)})
    paths = [{"diffusion": n, "seed": 0, **told(d, variances)} for n, d in presets()] + paths
    command = "python -m tests.benchmarks.auxiliary"
    command += f" --seeds {options.seeds} --draws {options.draws}"
    seeds = ", ".join(map(str, range(options.seeds)))
    steps = TABLES["digits"].options["steps"]
    write(
        options.tables / "auxiliary-use.csv",
        over_seeds(pd.DataFrame(rows), ["score", "diffusion"]),
        [command],
        seeds,
        "bits/dim",
        [
            f"digits, {steps} steps of 128, 180 test images, {options.draws} draws of each",
            "log SNR at the start is 9",
            "± is the standard error over seeds",
        ],
        digits=4,
    )
    write(
        options.tables / "auxiliary-told.csv",
        over_seeds(pd.DataFrame(paths), ["diffusion"]),
        [command],
        seeds,
        "bits/dim",
        [
            "information of v beyond x_s about Gaussian data with the covariance of the training "
            "digits, by log SNR of the whole state; for noise predictions after training",
            "± is the standard error over seeds",
        ],
        digits=4,
    )


if __name__ == "__main__":
    main()
