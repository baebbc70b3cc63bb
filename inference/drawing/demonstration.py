"""Restorations of test images, beside the truth: quality, and whether intervals are calibrated."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from inference.drawing.restoration import ends_of
from inference.drawing.sampling import Sampling, draw
from models import Problem
from pyro_mdm import DiffusionModel
from pyro_mdm.measurements import Downsample, LinearOperator, Mask, condition_on_measurements
from pyro_mdm.randomness import seed_from
from pyro_mdm.support.measured import Measured

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Restored", "coverage", "picture", "psnr", "restored", "summary"]

SHOWN = 3
"""The samples of an image in the picture."""
PEAK = 2.0
"""The range from the darkest to the lightest pixel, in model space."""


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
    data: Tensor | None = None,
    **options: Unpack[Sampling],
) -> Restored:
    """Posterior samples of images (n, C, H, W) given noisy measurements of them.

    Args:
        noise: the standard deviation of the measurements' noise.
        num_samples: number of samples of each image.
        data: training data, see :func:`~pyro_mdm.measurements.condition_on_measurements`.
        options: as for :func:`~inference.drawing.sampling.draw`; the batch size is rough.
    """
    seed, batch_size = options.get("seed", 0), options.get("batch_size", 256)
    generator = torch.Generator().manual_seed(seed_from(seed, "measurements"))
    obs = operator(truth.double())
    drawn = torch.randn(obs.shape, generator=generator, dtype=torch.float64)
    obs, n = obs + noise * drawn, len(truth)
    given = condition_on_measurements(model, operator, obs, noise**2, data=data)
    options["batch_size"] = n * max(1, batch_size // n)
    x = draw(given, n * num_samples, **options)
    return Restored(truth, obs, x.reshape(num_samples, *truth.shape), operator.cpu())


def psnr(estimate: Tensor, truth: Tensor) -> Measured:
    """The peak signal-to-noise ratio of images (n, C, H, W), dB; mean over images and error."""
    square = (estimate - truth).double().square().flatten(1).mean(1)
    # finite for an exact restoration
    return Measured.from_values(10 * torch.log10(PEAK**2 / square.clamp_min(1e-12)))


def coverage(restored: Restored, seed: int = 0) -> tuple[float, Measured]:
    """The nominal and the measured fraction of pixels inside their 90% intervals.

    The ends of an interval are the k-th sample from below and from above, k = ⌊(S + 1) / 20⌋. Ties
    of samples with the truth, which levels have, are broken at random. Pixels that are seen exactly
    do not count. The nominal fraction is 1 - 2 k / (S + 1), where truth and samples have one law;
    the measured one is a mean over images with its standard error.
    """
    S = len(restored.samples)
    k = ends_of(S)
    below = (restored.samples < restored.truth).sum(0).double()
    equal = (restored.samples == restored.truth).sum(0).double()
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(below.shape, generator=generator, dtype=torch.float64)
    rank = (below + (u * (equal + 1)).floor()).flatten(1)
    inside = ((rank >= k) & (rank <= S - k)).double()
    if isinstance(restored.operator, Mask):
        inside = inside[:, ~restored.operator.seen.flatten()]
    return 1 - 2 * k / (S + 1), Measured.from_values(inside.mean(1))


def summary(restored: Restored) -> str:
    """Quality and coverage in words, as the command prints them."""
    mean = restored.samples.double().mean(0)
    rest = restored.operator(restored.samples.double()) - restored.obs
    probability, covered = coverage(restored)
    return (
        f"PSNR {psnr(mean, restored.truth)} dB of the posterior mean, "
        f"{psnr(restored.samples[0], restored.truth)} of a sample; "
        f"{100 * probability:.0f}% intervals contain {100 * covered.mean:.1f} ± "
        f"{100 * covered.standard_error:.1f}% of the pixels; "
        f"samples differ from the measurement by {float(rest.square().mean().sqrt()):.3f}"
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
    operator, obs = restored.operator, restored.obs
    if isinstance(operator, Downsample):
        return operator.adjoint(obs) * operator.factor**2
    return obs if operator.obs_shape == operator.event_shape else operator.adjoint(obs)
