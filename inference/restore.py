"""Images restored from blurred, coarse or incomplete ones, by a run that was trained on whole ones.

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
"""Samples of an image, of which the least and the largest are the ends of a 90% interval."""
SHOWN = 3
"""Samples of an image in the picture."""
PEAK = 2.0
"""From the darkest to the lightest pixel, in model space."""


def half(event_shape: tuple[int, ...]) -> Mask:
    """A mask by which the left half of each row is seen."""
    seen = torch.zeros(event_shape, dtype=torch.bool)
    seen[..., : (event_shape[-1] + 1) // 2] = True
    return Mask(seen)


TASKS: dict[str, Callable[[tuple[int, ...]], LinearOperator]] = {
    "deblur": lambda shape: Blur(shape, 1.0),
    "superresolve": lambda shape: Downsample(shape, 2),
    "inpaint": half,
}


class Restored(NamedTuple):
    """Images, their measurements and samples, in model space, on the CPU."""

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
        noise: standard deviation of what is added to a measurement.
        num_samples: of each image.
        batch_size: about how many are drawn together.
        covariance_from: of :func:`~pyro_mdm.measurements.condition_on_measurements`.
        sampler, steps, progress: of :func:`~inference.sample.draw`.
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
    """Peak signal-to-noise ratio of images (n, C, H, W), dB, mean over images ± standard error."""
    square = (estimate - truth).double().square().flatten(1).mean(1)
    return Measured.of(10 * torch.log10(PEAK**2 / square.clamp_min(1e-12)))


def coverage(restored: Restored, seed: int = 0) -> tuple[float, Measured]:
    """The part of pixels whose 90% intervals hold the truth, of those not seen as they are.

    Ends are the k-th sample from below and from above, with k = ⌊(S + 1) / 20⌋; samples equal to
    the truth, which pixels of levels have, are put on either side of it by chance. Returned are the
    probability 1 - 2 k / (S + 1), where truth and samples are of one law, and the mean over images
    ± standard error.
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
    """Contexts (n, …) of images beside their measurements, and a sentence; None if there are none.

    Args:
        given: labels in turn, or a vector; None: nothing.

    Raises:
        ValueError: something is given, and data are given nothing; or the reverse, and the network
            was always told.
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

    The run was trained on whole images, by a denoiser (--score discrete or denoiser). The picture
    has a row for each image: what was measured, the mean of the samples, three samples, the truth.
    Printed are the peak signal-to-noise ratio and how many of the pixels are inside of their 90%
    intervals, ± standard error over images.

    Args:
        run: the run folder, or the name of a trained model in models/trained, such as digits.
        task: deblur (a Gaussian of one pixel's width), superresolve (averages of 2×2 pixels) or
            inpaint (the left half is seen).
        num_images: from the first test image on.
        num_samples: of each image; at least 19, of which the extremes are a 90% interval.
        noise: standard deviation of what is added to the measurement, in units in which pixels go
            from -1 to 1.
        sampler: as of inference.sample.
        steps: as of inference.sample.
        covariance_from: log SNR from which the covariance of an image given its noised one is the
            network's own; below it that of independent pixels. 99: never, which is fastest.
        out: a .png; by default in the run folder, or of a trained model by name in the current
            folder, named after the task and seed.
        batch_size: images drawn together, to a multiple of num_images.
        seed: of all noise.
        overwrite: replace ``out`` if it exists.
        accelerator: cpu, cuda, … or auto.
        given: of a run with --condition: what the network is told of the images beside their
            measurements, a label, such as 3, or [3, 5] in turn, or a vector; by default nothing.
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
    """The data set of a run, of so many images of levels (else RunError or ValueError)."""
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
