"""Restoration of blurred, coarse or partly seen images, by a run that was trained on whole ones.

    python -m inference.restore runs/digits-learned-0-0 --task deblur
    python -m inference.restore runs/mine --data torn.png --mask mask.png --noise 0.01
    python -m inference.restore runs/mine --data photos --operator mine.py:Lens --noise 0.02

With --data the images are your own, already blurred, coarse or torn; the command prints only what
can be known without the truth. Without it, test images of the run are measured, to show how good
restorations are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.commands.cli import check_options_positive, check_positive, command_line
from inference.drawing import restoring
from inference.drawing.demonstration import Restored, coverage, picture, psnr, restored, summary
from inference.drawing.observations import TASKS, Task, chosen_measurement, measured_files
from inference.drawing.restoring import contexts_of_images
from inference.folders.loading import load_trained
from inference.folders.output import check_out, default_out
from inference.machine.processes import start
from inference.settings.kinds import checked_options

__all__ = ["TASKS", "Restored", "coverage", "picture", "psnr", "restore", "restored", "summary"]
__all__ += ["contexts_of_images"]

FEWEST = 19
"""The fewest samples of an image: their least and largest are the ends of a 90% interval."""
NUM_IMAGES, NOISE = 8, 0.05
"""Test images, and the standard deviation of their measurements' noise, by default."""


@dataclass(frozen=True, kw_only=True)
class RestorationOptions:
    """The restoration.

    Args:
        run: run folder, or the name of a trained model in models/trained, such as digits.
        data: picture (.png, .jpg, …), or array (.npy) of measured numbers in which pixels go from
            -1 to 1; several of these, [a.png, b.png]; or a folder of pictures.
        task: way in which images are measured: deblur (a Gaussian of one pixel's width),
            superresolve (averages of 2×2 pixels), inpaint (the left half is seen) or denoise (all
            is seen). Test images are blurred by default.
        mask: black and white picture, white where the image is seen, of the image's size.
        operator: name, module:Name or file.py:Name, of any other measurement: a
            pyro_mdm.measurements.LinearOperator, or a function of event_shape, (C, H, W), that
            returns one.
        noise: standard deviation of the measurements' noise, in units in which pixels go from -1 to
            1, so that one of 255 levels is 0.0078; 0.05 for test images. With --data it is
            required; it may be 0 there, for pixels that are seen exactly.
        num_images: number of test images, from the first one on; by default 8.
        num_samples: number of samples of each image; at least 19, whose extremes are a 90%
            interval.
        sampler: sampler, as for inference.sample.
        steps: number of steps of the sampler, as for inference.sample.
        out: name of a .png file; with --data that of a folder, for a .png and an .npz of each
            image. By default in the run folder (for a model in models/trained, in the current
            folder), named after the measurement and the seed.
        batch_size: number of images, or of windows of the network's size, computed together; of
            test images, rounded to a multiple of --num_images.
        seed: seed of all noise.
        overwrite: whether the file of --out, or the files in that folder, are replaced if they
            exist.
        accelerator: kind of device: cpu, cuda, … or auto.
        given: context of the images, for a run of --condition: a label, such as 3, or several in
            turn, [3, 5], by the names of classes if they have names; or a vector. By default none.
            Where all images have one label, or with --data, the covariance of pixels is that of
            training images with their label.
    """

    run: Path
    data: list[Path] | Path | None = None
    task: Task | None = None
    mask: Path | None = None
    operator: str | None = None
    noise: float | None = None
    num_images: int | None = None
    num_samples: int = FEWEST
    sampler: str | None = None
    steps: int | None = None
    out: Path | None = None
    batch_size: int = 256
    seed: int = 0
    overwrite: bool = False
    accelerator: str = "auto"
    given: list[float] | list[str] | float | str | None = None


@checked_options(RestorationOptions)
def restore(run: Path, **options: Any) -> None:
    """Restore images from measurements of them, with a run's averaged weights.

    The run needs a denoiser (--score discrete or denoiser), trained on whole images. With --data
    the images are your own, and the files contain the measurement: already blurred, coarse or
    partly seen. Each image gets a page of pictures (.png) and a file of all numbers (.npz): draws,
    mean, 90% interval of each pixel, and the path of a draw from noise. The command prints how far
    draws are from the measurement, compared with the noise, and how wide intervals are. Images
    larger than the network's are restored by overlapping windows, if the run's images are
    statistically alike in all places.

    Without --data test images are measured, with noise. The picture has a row for each image: the
    measurement, the mean of the samples, three samples, the truth. It prints the peak
    signal-to-noise ratio and the fraction of pixels inside their 90% intervals, ± standard error
    over images.

    Args:
        run, options: options by name, see :class:`RestorationOptions`.
    """
    settings = RestorationOptions(run=run, **options)
    num_samples, data = settings.num_samples, settings.data
    if num_samples < FEWEST:
        raise ValueError(
            f"--num_samples is {num_samples}, expected at least {FEWEST}: the ends of a 90% "
            "interval are the extremes of so many"
        )
    check_options_positive(settings, "num_images", "steps", "batch_size")
    task, noise = settings.task, settings.noise
    if data is None:
        check_positive(noise=noise)
        if task is settings.mask is settings.operator is None:
            task = "deblur"
        noise = NOISE if noise is None else noise
    else:
        restoring.check_for_files(noise, settings.num_images)
    measurement = chosen_measurement(task, settings.mask, settings.operator)
    files = None if data is None else measured_files(data)
    name = f"restored-{measurement.name}-{settings.seed}" + (".png" if data is None else "")
    out = settings.out or default_out(run, name)
    check_out(out, (".png",) if data is None else (), overwrite=settings.overwrite)
    programs = load_trained(run)[1]
    number = NUM_IMAGES if settings.num_images is None else settings.num_images
    problem = restoring.images_of(run, programs.problem, number if data is None else 0)
    assert noise is not None
    fabric = start(settings.accelerator)
    programs.model.to(fabric.device)
    drawing = restoring.RestoreOptions(
        noise, num_samples, settings.seed, settings.batch_size, settings.sampler, settings.steps
    )
    if files is None:
        restoring.demonstrate(programs, problem, measurement, number, settings.given, drawing, out)
    else:
        restoring.restore_files(programs, problem, measurement, files, settings.given, drawing, out)


if __name__ == "__main__":
    command_line(restore, unnamed="run", groups={"restoration": RestorationOptions})
