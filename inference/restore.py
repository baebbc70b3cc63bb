"""Restoration of blurred, coarse or partly seen images, by a run that was trained on whole ones.

python -m inference.restore runs/digits-learned-0-0 --task deblur
python -m inference.restore runs/digits-learned-0-0 --task inpaint --num_images 16 --out inpaint.png
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from inference.checkpoints import write_atomically
from inference.cli import check_positive, command_line
from inference.loading import load_trained
from inference.output import check_out, default_out, png
from inference.processes import start
from inference.runs import RunError
from inference.sample import Drawing, contexts, draw
from inference.seeds import seed_from
from models import ImageProblem, Problem
from models.base import Part
from pyro_mdm import DiffusionModel
from pyro_mdm.contexts import Labels
from pyro_mdm.measurements import (
    Blur,
    Downsample,
    LinearOperator,
    Mask,
    condition_on_measurements,
)
from pyro_mdm.support.measured import Measured

Task = Literal["deblur", "superresolve", "inpaint"]

INTERVAL = 0.9
FEWEST = 19
"""The fewest samples of an image: their least and largest are the ends of a 90% interval."""
SHOWN = 3
"""The samples of an image in the picture."""
PEAK = 2.0
"""The range from the darkest to the lightest pixel, in model space."""


def half(event_shape: tuple[int, ...]) -> Mask:
    """A mask that sees the left half of each row."""
    seen = torch.zeros(event_shape, dtype=torch.bool)
    seen[..., : (event_shape[-1] + 1) // 2] = True
    return Mask(seen)


TASKS: dict[str, Callable[[tuple[int, ...]], LinearOperator]] = {
    "deblur": lambda shape: Blur(shape, 1.0),
    "superresolve": lambda shape: Downsample(shape, 2),
    "inpaint": half,
}


class Restored(NamedTuple):
    """Images with their measurements and posterior samples, in model space, on the CPU."""

    truth: Tensor  # (n, C, H, W)
    obs: Tensor  # (n, *obs_shape)
    samples: Tensor  # (S, n, C, H, W)
    operator: LinearOperator


def restored(
    model: DiffusionModel,
    truth: Tensor,
    operator: LinearOperator,
    noise: float,
    num_samples: int,
    *,
    seed: int = 0,
    batch_size: int = 256,
    covariance_from: float = 0.0,
    sampler: str | None = None,
    steps: int | None = None,
    progress: bool = False,
) -> Restored:
    """Posterior samples of images (n, C, H, W) given noisy measurements of them.

    Args:
        noise: the standard deviation of the measurements' noise.
        num_samples: samples of each image.
        batch_size: about how many samples are drawn together.
        covariance_from: see :func:`~pyro_mdm.measurements.condition_on_measurements`.
        sampler, steps, progress: see :func:`~inference.sample.draw`.
    """
    generator = torch.Generator().manual_seed(seed_from(seed, "measurements"))
    obs = operator(truth.double())
    drawn = torch.randn(obs.shape, generator=generator, dtype=torch.float64)
    obs, n = obs + noise * drawn, len(truth)
    given = condition_on_measurements(
        model, operator, obs, noise**2, covariance_from=covariance_from
    )
    options = Drawing(sampler=sampler, steps=steps, progress=progress)
    options |= Drawing(seed=seed, batch_size=n * max(1, batch_size // n))
    x = draw(given, n * num_samples, **options)
    return Restored(truth, obs, x.reshape(num_samples, *truth.shape), operator.cpu())


def psnr(estimate: Tensor, truth: Tensor) -> Measured:
    """The peak signal-to-noise ratio of images (n, C, H, W), dB; mean over images and error."""
    square = (estimate - truth).double().square().flatten(1).mean(1)
    return Measured.of(10 * torch.log10(PEAK**2 / square.clamp_min(1e-12)))


def coverage(restored: Restored, seed: int = 0) -> tuple[float, Measured]:
    """The nominal and the measured fraction of pixels inside their 90% intervals.

    The ends of an interval are the k-th sample from below and from above, k = ⌊(S + 1) / 20⌋. Ties
    of samples with the truth, which levels have, are broken at random. Pixels that are seen exactly
    do not count. The nominal fraction is 1 - 2 k / (S + 1), where truth and samples have one law;
    the measured one is a mean over images with its standard error.
    """
    S = len(restored.samples)
    k = math.floor((1 - INTERVAL) / 2 * (S + 1) + 1e-9)
    below = (restored.samples < restored.truth).sum(0).double()
    equal = (restored.samples == restored.truth).sum(0).double()
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(below.shape, generator=generator, dtype=torch.float64)
    rank = (below + (u * (equal + 1)).floor()).flatten(1)
    inside = ((rank >= k) & (rank <= S - k)).double()
    if isinstance(restored.operator, Mask):
        inside = inside[:, ~restored.operator.seen.flatten()]
    return 1 - 2 * k / (S + 1), Measured.of(inside.mean(1))


def summary(restored: Restored) -> str:
    """Quality and coverage in words, as the program prints them."""
    mean = restored.samples.double().mean(0)
    rest = restored.operator(restored.samples.double()) - restored.obs
    probability, covered = coverage(restored)
    return (
        f"PSNR {psnr(mean, restored.truth)} dB of the posterior mean, "
        f"{psnr(restored.samples[0], restored.truth)} of a sample; "
        f"{100 * probability:.0f}% intervals hold {100 * covered.mean:.1f} ± "
        f"{100 * covered.standard_error:.1f}% of the pixels; "
        f"{float(rest.square().mean().sqrt()):.3f} from what was measured, by sample"
    )


def picture(problem: Problem, restored: Restored) -> Tensor:
    """A row for each image: measurement, posterior mean, samples, truth; uint8 (3, H, W)."""
    from pyro_mdm.plots.pictures import image_grid  # loads matplotlib

    shown = restored.samples[:SHOWN]
    columns = [_seen(restored), restored.samples.double().mean(0), *shown, restored.truth]
    images = problem.to_images(torch.stack(columns, 1).flatten(0, 1).float())
    assert images is not None
    return image_grid(images, columns=len(columns), side=1024)


def _seen(restored: Restored) -> Tensor:
    """Measurements as images (n, C, H, W): grey where nothing is seen."""
    if isinstance(restored.operator, Downsample):
        return restored.operator.adjoint(restored.obs) * restored.operator.factor**2
    return (
        restored.obs
        if isinstance(restored.operator, Blur)
        else restored.operator.adjoint(restored.obs)
    )


def told(
    problem: Problem, part: Part, given: float | Sequence[float] | None
) -> tuple[Tensor | None, str | None]:
    """The contexts (n, …) of images, and a sentence about them; None where there are none.

    Args:
        given: labels in turn, or a vector; None: no context.

    Raises:
        ValueError: a context for a run without one, or none for a network that always had one.
    """
    context = problem.context
    if given is not None:
        given_to = contexts(problem, len(part), given)
    elif context is None:
        return None, None
    elif not context.dropout:
        raise ValueError(
            "--given is not given, but the run was trained with --context_dropout 0, so that its "
            "network has always been told; expected what it is to be told of the images, such as "
            "--given 3 or --given '[3, 5]' in turn"
        )
    else:
        given_to = context.unknown.expand(len(part), *context.shape)
    known = isinstance(context, Labels)
    what = "labels" if known else "contexts"
    if given is None:
        return given_to, f"the network is not told the {what} of the images (--given tells it)"
    said = f"the network is told the {what} {_listed(given_to) if known else given}"
    own = f"; those of the images are {_listed(part.context)}" if known else ""
    return given_to, said + own


def _listed(labels: Tensor | None) -> str:
    return "unknown" if labels is None else ", ".join(map(str, labels.tolist()))


def restore(
    run: Path,
    task: Task = "deblur",
    num_images: int = 8,
    num_samples: int = FEWEST,
    noise: float = 0.05,
    sampler: str | None = None,
    steps: int | None = None,
    covariance_from: float = 0.0,
    out: Path | None = None,
    batch_size: int = 256,
    seed: int = 0,
    overwrite: bool = False,
    accelerator: str = "auto",
    given: list[float] | float | None = None,
) -> None:
    """Restore test images from measurements of them, with a run's averaged weights.

    The run needs a denoiser (--score discrete or denoiser), trained on whole images. The picture
    has a row for each image: the measurement, the mean of the samples, three samples, the truth.
    It prints the peak signal-to-noise ratio and the fraction of pixels inside their 90% intervals,
    ± standard error over images.

    Args:
        run: the run folder, or the name of a trained model in models/trained, such as digits.
        task: deblur (a Gaussian of one pixel's width), superresolve (averages of 2×2 pixels) or
            inpaint (the left half is seen).
        num_images: number of images, from the first test image on.
        num_samples: samples of each image; at least 19, whose extremes are a 90% interval.
        noise: standard deviation of the measurements' noise; pixels range from -1 to 1.
        sampler: as for inference.sample.
        steps: as for inference.sample.
        covariance_from: log SNR from which the covariance of an image given its noised version is
            the network's; below it, that of independent pixels. 99: never, which is fastest.
        out: a .png; by default in the run folder (of a model in models/trained, in the current
            folder), named after the task and seed.
        batch_size: images drawn together, rounded to a multiple of num_images.
        seed: seed of all noise.
        overwrite: replace ``out`` if it exists.
        accelerator: cpu, cuda, … or auto.
        given: with a run of --condition: the context of the images, a label, such as 3, or [3, 5]
            in turn, or a vector; by default none.
    """
    counts = {"num_images": num_images, "steps": steps, "batch_size": batch_size}
    check_positive(noise=noise, **counts)
    if num_samples < FEWEST:
        raise ValueError(
            f"--num_samples is {num_samples}, expected at least {FEWEST}: the ends of a 90% "
            "interval are the extremes of so many"
        )
    out = default_out(run, f"restored-{task}-{seed}.png") if out is None else out
    check_out(out, (".png",), overwrite=overwrite)
    programs = load_trained(run)[1]
    problem = _images(run, programs.problem, num_images)
    fabric = start(accelerator)
    programs.model.to(fabric.device)
    part = problem.part("test")[:num_images]
    context, said = told(problem, part, given)
    images = restored(
        programs.given(context).model,
        problem.to_model_space(part.data),
        TASKS[task](problem.event_shape),
        noise,
        num_samples,
        seed=seed,
        batch_size=batch_size,
        covariance_from=covariance_from,
        sampler=sampler,
        steps=steps,
        progress=True,
    )
    write_atomically(out, png(picture(problem, images)))
    if said is not None:
        print(said)
    print(f"{task} of {num_images} test images, {num_samples} samples of each: {summary(images)}")
    print(out)


def _images(run: Path, problem: Problem, num_images: int) -> ImageProblem:
    """The data set of a run, if it has so many images of levels (else RunError, ValueError)."""
    if not isinstance(problem, ImageProblem) or problem.dequantization is not None:
        raise RunError(
            f"{run} was trained on {problem.name}, of which x is no image of pixels from -1 to 1; "
            "restore images of the discrete protocol: train with --model digits, for example"
        )
    if num_images > len(problem.test):
        raise ValueError(
            f"--num_images is {num_images}, expected at most the {len(problem.test)} test images"
        )
    return problem


if __name__ == "__main__":
    command_line(restore, unnamed="run")
