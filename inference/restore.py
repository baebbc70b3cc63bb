"""Restoration of blurred, coarse or partly seen images, by a run that was trained on whole ones.

    python -m inference.restore runs/digits-learned-0-0 --task deblur
    python -m inference.restore runs/mine --data torn.png --mask mask.png --noise 0.01
    python -m inference.restore runs/mine --data photos --operator mine.py:Lens --noise 0.02

With --data the images are one's own, already blurred, coarse or torn; what is said of them is what
can be known without the truth. Without it test images of the run are measured, to show how good
restorations are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from inference.commands.cli import check_positive, command_line
from inference.drawing.demonstration import Restored, coverage, picture, psnr, restored, summary
from inference.drawing.observations import TASKS, How, Task, how_measured, measured_files, read
from inference.drawing.pictures import Given, contexts
from inference.drawing.restoration import restoration
from inference.folders.checkpoints import write_atomically
from inference.folders.loading import load_trained
from inference.folders.output import check_out, default_out, png
from inference.folders.runs import RunError
from inference.machine.processes import start
from inference.settings.plan import Programs
from models import ImageProblem, Problem
from pyro_mdm import DiffusionModel
from pyro_mdm.contexts import Labels
from pyro_mdm.support.files import check_place

__all__ = ["TASKS", "Restored", "coverage", "picture", "psnr", "restore", "restored", "summary"]

LEARNED_FROM = 2048
"""Training images of which the covariance of pixels is taken, or up to twice as many."""
FEWEST = 19
"""The fewest samples of an image: their least and largest are the ends of a 90% interval."""
OF_A_LABEL = 32
"""The fewest training images of a label by which an image of this label is restored."""
NUM_IMAGES, NOISE = 8, 0.05
"""Test images, and the standard deviation of their measurements' noise, by default."""


def told(
    problem: Problem,
    n: int,
    given: Given | None,
    own: Tensor | None = None,
) -> tuple[Tensor | None, str | None]:
    """The contexts (n, …) of n images, and a sentence about them; None where there are none.

    Args:
        given: labels in turn, or a vector; None: no context.
        own: the labels of the images, (n,), where they are known.

    Raises:
        ValueError: a context for a run without one, or none for a network that always had one.
    """
    context = problem.context
    if given is not None:
        given_to = contexts(problem, n, given)
    elif context is None:
        return None, None
    elif not context.dropout:
        raise ValueError(
            "--given is missing, but the run was trained with --context_dropout 0, so that its "
            "network always needs a context; expected that of the images, such as --given 3, or "
            "--given '[3, 5]' for these in turn"
        )
    else:
        given_to = context.unknown.expand(n, *context.shape)
    is_labelled = isinstance(context, Labels)
    what = "labels" if is_labelled else "contexts"
    if given is None:
        return given_to, f"the network is not told the {what} of the images; --given tells it"
    names = problem.class_names
    said = f"the network is told the {what} {_listed(given_to, names) if is_labelled else given}"
    theirs = (
        "" if own is None or not is_labelled else f"; those of the images are {_listed(own, names)}"
    )
    return given_to, said + theirs


def _listed(labels: Tensor | None, names: Sequence[str] | None) -> str:
    if labels is None:
        return "unknown"
    return ", ".join(str(k) if names is None else names[k] for k in labels.tolist())


def restore(
    run: Path,
    data: list[Path] | Path | None = None,
    task: Task | None = None,
    mask: Path | None = None,
    operator: str | None = None,
    noise: float | None = None,
    num_images: int | None = None,
    num_samples: int = FEWEST,
    sampler: str | None = None,
    steps: int | None = None,
    out: Path | None = None,
    batch_size: int = 256,
    seed: int = 0,
    overwrite: bool = False,
    accelerator: str = "auto",
    given: list[float] | list[str] | float | str | None = None,
) -> None:
    """Restore images from measurements of them, with a run's averaged weights.

    The run needs a denoiser (--score discrete or denoiser), trained on whole images. With --data
    the images are your own, and what the files hold is the measurement: already blurred, coarse or
    partly seen. Of each there is a page of pictures (.png) and all numbers (.npz): draws, mean,
    90% interval of each pixel, and the way of a draw from noise. It prints how far draws are from
    the measurement, beside the noise, and how wide intervals are. Images larger than the network's
    are restored by overlapping windows, if the run's images are alike in all places.

    Without --data test images are measured, with noise. The picture has a row for each image: the
    measurement, the mean of the samples, three samples, the truth. It prints the peak
    signal-to-noise ratio and the fraction of pixels inside their 90% intervals, ± standard error
    over images.

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
            1, so that one of 255 levels is 0.0078; 0.05 for test images. It is needed with --data,
            where it may be 0, for pixels that are seen exactly.
        num_images: number of test images, from the first one on; by default 8.
        num_samples: number of samples of each image; at least 19, the extremes of which are a 90%
            interval.
        sampler: sampler, as for inference.sample.
        steps: number of steps of the sampler, as for inference.sample.
        out: name of a .png file; with --data that of a folder, for a .png and an .npz of each
            image. By default in the run folder (for a model in models/trained, in the current
            folder), named after the measurement and the seed.
        batch_size: number of images, or of windows of the network's size, computed together; of
            test images, rounded to a multiple of --num_images.
        seed: seed of all noise.
        overwrite: replace the file of --out, or the files in that folder, if they exist.
        accelerator: kind of device: cpu, cuda, … or auto.
        given: context of the images, for a run of --condition: a label, such as 3, or several in
            turn, [3, 5], by the names of classes that have names; or a vector. By default none.
            Where all images have one label, or with --data, the covariance of pixels is that of
            training images of their label.
    """
    if num_samples < FEWEST:
        raise ValueError(
            f"--num_samples is {num_samples}, expected at least {FEWEST}: the ends of a 90% "
            "interval are the extremes of so many"
        )
    check_positive(num_images=num_images, steps=steps, batch_size=batch_size)
    if data is None:
        check_positive(noise=noise)
        if task is mask is operator is None:
            task = "deblur"
        noise = NOISE if noise is None else noise
    else:
        _check_own(noise, num_images)
    how = how_measured(task, mask, operator)
    files = None if data is None else measured_files(data)
    name = f"restored-{how.name}-{seed}" + (".png" if data is None else "")
    out = default_out(run, name) if out is None else out
    check_out(out, (".png",) if data is None else (), overwrite=overwrite)
    programs = load_trained(run)[1]
    number = NUM_IMAGES if num_images is None else num_images
    problem = _images(run, programs.problem, number if data is None else 0)
    assert noise is not None
    fabric = start(accelerator)
    programs.model.to(fabric.device)
    options = RestoreOptions(noise, num_samples, seed, batch_size, sampler, steps)
    if files is None:
        _demonstrate(programs, problem, how, number, given, options, out)
    else:
        _restore_own(programs, problem, how, files, given, options, out)


class RestoreOptions(NamedTuple):
    """How samples are drawn, see :func:`restore`."""

    noise: float
    num_samples: int
    seed: int
    batch_size: int
    sampler: str | None
    steps: int | None


def _check_own(noise: float | None, num_images: int | None) -> None:
    """Raise ValueError for options that do not go with --data."""
    if noise is None:
        raise ValueError(
            "--noise is not given, expected the standard deviation of the noise of --data, where "
            "pixels go from -1 to 1; rounding to 255 levels alone is 0.0023"
        )
    if not noise >= 0:
        raise ValueError(f"--noise is {noise}, expected 0, for none, or a positive number")
    if num_images is not None:
        raise ValueError(
            f"--num_images is {num_images}, which is for test images; leave it out, as all of "
            "--data are restored"
        )


def _demonstrate(
    programs: Programs,
    problem: ImageProblem,
    how: How,
    number: int,
    given: Given | None,
    options: RestoreOptions,
    out: Path,
) -> None:
    """Measure test images, restore them, and compare with the truth."""
    test = problem.part("test")[:number]
    labels = test.context if isinstance(problem.context, Labels) else None
    context, said = told(problem, number, given, labels)
    truth, operator = problem.to_model_space(test.data), how.operator(problem.event_shape)
    model = programs.given(context).model
    alike = None if context is None or bool((context != context[0]).any()) else context[0]
    data = _learned_from(problem, alike)
    images = restored(model, truth, operator, data=data, progress=True, **options._asdict())
    write_atomically(out, png(picture(problem, images)))
    if said is not None:
        print(said)
    print(
        f"{how.name} of {number} test images, {options.num_samples} samples of each: "
        f"{summary(images)}\n{out}"
    )


def _restore_own(
    programs: Programs,
    problem: ImageProblem,
    how: How,
    files: Sequence[Path],
    given: Given | None,
    options: RestoreOptions,
    out: Path,
) -> None:
    """Restore images of files, each by itself, into a folder."""
    observations = [read(file, how, problem.event_shape) for file in files]
    for observation in observations:
        check_place((out if out.is_dir() else out.parent) / f"{observation.name}.npz")
    context, said = told(problem, len(files), given)
    if said is not None:
        print(said)
    prepared: dict[tuple[float, ...], tuple[DiffusionModel, Tensor]] = {}  # measured once for each
    for i, (file, observation) in enumerate(zip(files, observations, strict=True)):
        image_context = None if context is None else context[i]
        key = () if image_context is None else tuple(image_context.flatten().tolist())
        if key not in prepared:
            prepared[key] = (
                programs.given(image_context).model,
                _learned_from(problem, image_context),
            )
        model, data = prepared[key]
        try:
            one = restoration(model, observation, data=data, progress=True, **options._asdict())
        except ValueError as error:
            raise ValueError(f"--data {file}: {error}") from error
        out.mkdir(exist_ok=True)
        for suffix, content in ((".npz", one.arrays()), (".png", png(one.page()))):
            write_atomically(out / f"{observation.name}{suffix}", content)
        print(f"{one.summary()}\n{out / observation.name}.png")


def _learned_from(problem: ImageProblem, context: Tensor | None = None) -> Tensor:
    """Training images in model space, some of many; for a label those that have it, if not few."""
    train = problem.part("train")
    data = train.data
    if context is not None and train.context is not None and isinstance(problem.context, Labels):
        alike = data[train.context == context.to(train.context)]
        data = alike if len(alike) >= OF_A_LABEL else data
    return problem.to_model_space(data[:: max(1, len(data) // LEARNED_FROM)])


def _images(run: Path, problem: Problem, num_images: int) -> ImageProblem:
    """The data set of a run, if it has so many images of levels (else RunError, ValueError)."""
    if not isinstance(problem, ImageProblem) or problem.dequantization is not None:
        raise RunError(
            f"{run} was trained on {problem.name}, whose data are no images with pixels from -1 to "
            "1, expected images of the discrete protocol; train with --model digits, for example"
        )
    if num_images > len(problem.test):
        raise ValueError(
            f"--num_images is {num_images}, expected at most the {len(problem.test)} test images"
        )
    return problem


if __name__ == "__main__":
    command_line(restore, unnamed="run")
