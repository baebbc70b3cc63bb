"""An inspection of diffusions by a table and a figure, without a network except a run's.

    python -m inference.inspect --guide cld
    python -m inference.inspect --guide vpsde,cld,malda,alda --model mnist5k
    python -m inference.inspect --guide run:runs/digits-learned-0-0
    python -m inference.inspect --guide run:runs/digits-learned-0-0 --draws 16

:mod:`inference.measuring.inspection` defines the printed quantities.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from inference.commands.cli import check_positive, command_line
from inference.folders.checkpoints import write_atomically
from inference.folders.output import check_out, png
from inference.measuring import inspection
from inference.measuring.inspection import look
from inference.measuring.inspection_figure import inspection_figure as figure
from inference.settings.kinds import checked_options
from inference.settings.names import slug
from inference.settings.options import DataOptions, Guide, StationaryVariance
from inference.settings.problems import build_problem

__all__ = ["figure", "inspect", "look"]


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """The inspection.

    Args:
        guide: diffusion, or several with commas between them: vpsde, cld, malda, alda, hold, ve,
            subvp, rectified_flow, cosine, momentum_ve, learned (as it starts), module:Name,
            file.py:Name, or run:FOLDER for the diffusion that a run ended with.
        model: data set for the prior KL and the noised images, as for inference.train.
        protocol: protocol of images: discrete, with levels in [-1, 1], by default; or dequantized,
            as in the paper.
        data: files of the data set, as for inference.train.
        image_size: side of images, as for inference.train, with --model images.
        num_variables: number K of variables of learned, 2 by default.
        rank: rank of the matrix D of learned, K by default.
        stationary_variance: stationary variance Σ_∞ of learned, as for inference.train.
        max_log_snr: log SNR at the start time; by default the data set's.
        min_log_snr: log SNR at time T, to which clocks are scaled; by default -10 for learned and
            for learned diffusions of your own; other clocks are not scaled.
        draws: number of draws of each test datum, for run:FOLDER, by which it is measured how much
            the run's network uses the auxiliary variables; 16 are enough for a first look. By
            default this is not measured.
        out: name of a .png file for the figure; by default inspect-<model>-<guides>.png in the
            current folder.
        overwrite: whether the file of --out is replaced if it exists.
    """

    guide: str = "learned"
    model: str = "digits"
    protocol: Literal["discrete", "dequantized"] | None = None
    data: Path | None = None
    image_size: int | None = None
    num_variables: int | None = None
    rank: int | None = None
    stationary_variance: StationaryVariance | None = None
    max_log_snr: float | None = None
    min_log_snr: float | None = None
    draws: int | None = None
    out: Path | None = None
    overwrite: bool = False


@checked_options(InspectOptions)
def inspect(guide: str = "learned", model: str = "digits", **options: Any) -> None:
    """Print the properties of diffusions before training with them, and draw them.

    Args:
        guide, model, options: options by name, see :class:`InspectOptions`.
    """
    settings = InspectOptions(guide=guide, model=model, **options)
    names = [name.strip() for name in settings.guide.split(",")]
    asked = Guide(
        num_variables=settings.num_variables,
        rank=settings.rank,
        stationary_variance=settings.stationary_variance,
        max_log_snr=settings.max_log_snr,
        min_log_snr=settings.min_log_snr,
    )
    for_learned = ("num_variables", "rank", "stationary_variance")
    surplus = [f"--{name}" for name in for_learned if getattr(asked, name) is not None]
    if "learned" not in names and surplus:
        raise ValueError(
            f"{', '.join(surplus)} is for --guide learned, and {settings.guide} has its own; leave "
            "it out, or add learned to --guide"
        )
    if settings.draws is not None:
        check_positive(draws=settings.draws)
        if others := [name for name in names if not name.startswith("run:")]:
            raise ValueError(
                f"--draws is {settings.draws}, and {', '.join(others)} has no network to measure; "
                "leave it out, or name runs alone: --guide run:FOLDER"
            )
    slugs = map(slug, (settings.model, *names))
    out = settings.out or Path(f"inspect-{'-'.join(slugs)}.png")
    check_out(out, (".png",), overwrite=settings.overwrite)
    data_options = DataOptions(
        model=settings.model,
        protocol=settings.protocol,
        data=settings.data,
        image_size=settings.image_size,
        holdout=False,
    )
    problem = build_problem(data_options)
    x = problem.to_model_space(problem.test, torch.Generator().manual_seed(0)).double()
    diffusions = [
        inspection.inspected_diffusion(replace(asked, guide=name), problem) for name in names
    ]
    seen = [look(name, diffusion, x) for name, diffusion in zip(names, diffusions, strict=True)]
    drawn = {n: diffusions[i] for i, n in enumerate(names) if not seen[i].errors}
    size = f"{len(x)} test data, {x[0].numel()} dims"
    print(f"{settings.model}: {size}, mean square {x.square().mean():.3g}")
    print(inspection.table(seen))
    if settings.draws is not None:
        for name in names:
            print(inspection.use_of_auxiliaries(name, settings.draws))
    if drawn:
        write_atomically(out, png(figure(list(drawn), list(drawn.values()), x)))
        print(out)


if __name__ == "__main__":
    command_line(inspect, groups={"inspection": InspectOptions}, listed=["guide"])
