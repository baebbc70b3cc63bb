"""Are the auxiliary variables used by trained scores? And the information in paths; run by hand.

    python -m tests.benchmarks.auxiliary --runs runs/auxiliary --seeds 2 --draws 16

Trains CLD and learned diffusions of two and three variables on digits, with noise predictions and
with denoisers, as in the table ``digits`` of :mod:`inference.experiment`, where runs that are
finished are kept. Then it measures what :func:`pyro_mdm.auxiliary.auxiliary_use` defines on the
test images, for a law of Gaussian data with the mean and covariance of the training images, and
what :func:`pyro_mdm.auxiliary.auxiliary_information` says of the diffusions themselves.
"""

from __future__ import annotations

import argparse
import functools
import math
from pathlib import Path

import torch
from torch import Tensor

from inference.experiment import TABLES, train_all
from inference.folders.loading import load_trained
from pyro_mdm import ALDA, CLD, MALDA, LearnedDiffusion, LinearDiffusion
from pyro_mdm.auxiliary import GaussianPosterior, auxiliary_information, auxiliary_use
from tests.benchmarks.frame import Options, Row, Study, main

SCORES, GUIDES = ("noise", "denoiser"), ("cld", "learned2", "learned3")
START, LEVELS = 9.0, (9.0, 6.0, 3.0, 0.0, -3.0)
MEASURED = {
    "diffusion_term": "diffusion",
    "lost_without_v": "loss_x_alone",
    "lost_with_z_alone": "loss_z_alone",
    "joint_decoder_loss": "joint_loss",
    "joint_decoder_gap": "start_gap",
}
"""Columns, and the numbers of :class:`~pyro_mdm.auxiliary.AuxiliaryUse` that they hold."""


@functools.cache
def run_of(folder: Path, score: str, guide: str, seed: int) -> Path:
    """A run of the experiment ``digits``, trained if it is not there."""
    names = score, guide, seed
    chosen = [c for c in TABLES["digits"].cells() if (c.score, c.guide, c.seed) == names]
    train_all(chosen, folder, 1)
    return folder / chosen[0].name


def use(job: Row, options: Options) -> Row:
    """What a run makes of its auxiliary variables, on its test images, in bits/dim."""
    run = run_of(options.runs, job["score"], job["diffusion"], job["seed"])
    _, (problem, model, guide), _ = load_trained(run)
    law = GaussianPosterior.fit(problem.to_model_space(problem.train))
    x = problem.to_model_space(problem.test)
    found = auxiliary_use(model, guide, x, draws=options.draws, posterior=law)
    print(f"{run.name}: {found}", flush=True)
    bits = found.in_bits()
    # rounded as the file is, so that no number is -0.0000
    return {column: round(bits[name].mean, 4) + 0.0 for column, name in MEASURED.items()}


def information(diffusion: LinearDiffusion, variances: Tensor) -> Row:
    """Bits/dim that v tells beyond x_s where log SNR is LEVELS, by column."""
    with torch.no_grad():
        s = diffusion.time_at_log_snr(torch.tensor(LEVELS, dtype=torch.float64))
    nats = auxiliary_information(diffusion, s, variances).nats
    return {
        f"at_log_snr_{level:g}".replace("-", "minus_"): value / math.log(2)
        for level, value in zip(LEVELS, nats.tolist(), strict=True)
    }


PRESETS = {
    "cld": lambda: CLD(max_log_snr=START),
    "malda": lambda: MALDA(max_log_snr=START),
    "alda": lambda: ALDA(max_log_snr=START),
    "learned2 at its start": lambda: LearnedDiffusion(2, max_log_snr=START, min_log_snr=-10.0),
    "learned3 at its start": lambda: LearnedDiffusion(3, max_log_snr=START, min_log_snr=-10.0),
}
"""Diffusions before any training."""
AFTER = ("learned2 after training", "learned3 after training")


def told(job: Row, options: Options) -> Row:
    """Of Gaussian data with the covariance of the training digits."""
    name = job["diffusion"]
    guide = name.split()[0] if name in AFTER else "cld"
    run = run_of(options.runs, SCORES[0], guide, job["seed"] if name in AFTER else 0)
    _, (problem, model, _), _ = load_trained(run)
    variances = GaussianPosterior.fit(problem.to_model_space(problem.train)).variances
    return information(model.diffusion if name in AFTER else PRESETS[name](), variances)


STUDIES = {
    "auxiliary-use": Study(
        use,
        [{"score": score, "diffusion": guide} for score in SCORES for guide in GUIDES],
        seeds=3,
        unit="bits/dim",
        notes=["log SNR at the start is 9", "± is the standard error over seeds"],
        digits=4,
    ),
    "auxiliary-told": Study(
        told,
        [{"diffusion": name} for name in (*PRESETS, *AFTER)],
        seeds=3,
        unit="bits/dim",
        notes=[
            "information of v beyond x_s about Gaussian data with the covariance of the training "
            "digits, by log SNR of the whole state; for noise predictions after training",
            "± is the standard error over seeds",
        ],
        digits=4,
    ),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=Path, default=Path("runs/auxiliary"), help="their folder")
    parser.add_argument("--draws", type=int, default=64, help="for each image")


if __name__ == "__main__":
    main("auxiliary", __doc__, STUDIES, arguments)
