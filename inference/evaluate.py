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

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.commands.cli import command_line
from inference.commands.mistakes import check_evaluation
from inference.machine.processes import DTYPES, SinglePrecision, start
from inference.measuring.bounds import Calls, some
from inference.measuring.evaluated import EvaluatedRun, Method, print_rows, weights
from inference.measuring.reuse import ReusedRun, open_run
from inference.settings.kinds import checked_options
from inference.table import Table

__all__ = ["evaluate", "weights"]


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ReusedRun):
    """The evaluation.

    Args:
        draws: number of network evaluations per test datum, at log SNRs of low discrepancy.
        batch_size: number of data per network call.
        seed: seed of the noise; with the same seed an evaluation repeats exactly.
        half_width: half-width, in bits/dim, of the 95% interval for the noise. A pilot finds how
            many draws it takes; --draws is then their largest number, including those of the pilot.
        method: method: elbo, the bound; importance, importance weights over paths of the chain on a
            grid; flow, the probability-flow ODE and the decoder; or all. They estimate log p of
            different models, which agree where the score is exact, so they cannot be ranked.
        samples: number of weights per datum; by default 64 for importance, and 1 for flow.
        times: number of times in the grid of --method importance, even in log SNR; 65 by default.
        probes: number of Hutchinson's probes of --method flow, or 0 for the exact divergence, which
            takes d derivatives per call of a denoiser, and K·d of other scores; by default 0 up to
            16 states, and 1 for more.
        rtol: tolerance of the solver (dopri5) of --method flow, relative and absolute; 1e-4 by
            default.
        test_size: largest number of test data, spread evenly over the test part; by default all.
        classify: whether the test data are classified by Bayes' rule from the bounds given each
            class, with --draws network calls per datum and class; for a run of --condition labels.
        accelerator: kind of device: cpu, cuda, … or auto. Under torchrun all processes share the
            work of elbo.
        precision: precision of the network; a run of 64-true keeps its own.
        out: name of a .csv file for the bound on each datum, its Monte Carlo error, its label and,
            with --classify, the probability of each class. The column ``row`` is the index of the
            datum, from 0, in the data set, such as a row of the table, or in an official test part.
            For dequantized images the bound is at one draw of the dequantization, by --seed, which
            its error does not include. With --half_width both are empty for data that were never
            drawn.
        calibration: name of a .png file for the calibration of a table's test rows, whose entries
            are drawn 99 times, given about half of the others in their row.
        overwrite: whether the files of --out and --calibration are replaced if they exist.
        data: table of new rows, which are evaluated in place of the test data, for a run of a
            table: a .csv or .parquet file, or a name as for inference.train. The file of --out then
            has for each row a bound on log p of its observed entries, in nats, and its standard
            error.
    """

    draws: int = 32
    batch_size: int = 256
    seed: int = 0
    half_width: float | None = None
    method: Method = "elbo"
    samples: int | None = None
    times: int | None = None
    probes: int | None = None
    rtol: float | None = None
    test_size: int | None = None
    classify: bool = False
    accelerator: str = "auto"
    precision: SinglePrecision = "32-true"
    out: Path | None = None
    calibration: Path | None = None
    overwrite: bool = False
    data: str | None = None


@checked_options(EvaluateOptions)
def evaluate(run: Path | None = None, **options: Any) -> None:
    """Print the test bound of a run, with its averaged weights.

    Give a run folder alone (--run may be left out), or --reuse RUN --guide NAME for the run's
    trained denoiser under another diffusion, without training.

    Args:
        run, options: options by name, see :class:`EvaluateOptions`.
    """
    settings = EvaluateOptions(run=run, **options)
    check_evaluation(vars(settings))
    if settings.run is not None and settings.data is not None:
        table = Table.from_run(settings.run, accelerator=settings.accelerator)
        bounds = table.bounds(settings.batch_size)
        print_rows(
            settings.data,
            table.problem.columns,
            settings.out,
            lambda rows, k: bounds.measured(rows, settings.draws, seed=settings.seed, piece=k),
        )
        return
    fabric = start(settings.accelerator, settings.precision)
    opened = open_run(settings)
    opened.put_on(fabric.device, DTYPES[settings.precision])
    lead, several = fabric.is_global_zero, fabric.world_size > 1
    calls = Calls(
        draws=settings.draws, batch_size=settings.batch_size, progress=lead, distributed=several
    )
    test = opened.programs.problem.part("test")
    test = test if settings.test_size is None else some(test, settings.test_size)
    evaluated = EvaluatedRun(opened, test, settings.seed, calls, lead)
    if settings.calibration is not None and lead:
        evaluated.calibrate(settings.calibration)
    if settings.method == "elbo":
        evaluated.by_bound(settings.half_width, classify=settings.classify, out=settings.out)
    else:
        evaluated.by_weights(
            settings.method, settings.samples, settings.times, settings.probes, settings.rtol
        )


if __name__ == "__main__":
    command_line(evaluate, unnamed="run", groups={"evaluation": EvaluateOptions})
