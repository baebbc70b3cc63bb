"""Restorations by a run: of its test images, beside the truth, and of images in files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from inference.drawing.demonstration import picture, restored, summary
from inference.drawing.observations import MeasurementChoice, read
from inference.drawing.pictures import Given, contexts
from inference.drawing.restoration import restoration
from inference.folders.checkpoints import write_atomically, write_together
from inference.folders.output import png
from inference.folders.runs import RunError
from inference.settings.plan import Programs
from models import ImageProblem, Problem
from pyro_mdm import DiffusionModel
from pyro_mdm.conditioning import Labels
from pyro_mdm.support.files import check_place

LEARNED_FROM = 2048
"""Training images of which the covariance of pixels is taken, or up to twice as many."""
OF_A_LABEL = 32
"""The fewest training images of a label by which an image of this label is restored."""


class RestoreOptions(NamedTuple):
    """How samples are drawn, see :func:`inference.restore.restore`."""

    noise: float
    num_samples: int
    seed: int
    batch_size: int
    sampler: str | None
    steps: int | None


def contexts_of_images(
    problem: Problem, n: int, given: Given | None, labels: Tensor | None = None
) -> tuple[Tensor | None, str | None]:
    """The contexts of n images, (n, …), and a sentence on them; None where there are none.

    Args:
        given: labels in turn, or a vector; None: no context.
        labels: those of the images, (n,), where they are known.

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
        return given_to, f"the network is not given the {what} of the images; --given is for them"
    names = problem.class_names
    said = f"the network is given the {what} {_listed(given_to, names) if is_labelled else given}"
    if labels is not None and is_labelled:
        said += f"; those of the images are {_listed(labels, names)}"
    return given_to, said


def _listed(labels: Tensor | None, names: Sequence[str] | None) -> str:
    if labels is None:
        return "unknown"
    return ", ".join(str(k) if names is None else names[k] for k in labels.tolist())


def demonstrate(
    programs: Programs,
    problem: ImageProblem,
    measurement: MeasurementChoice,
    number: int,
    given: Given | None,
    options: RestoreOptions,
    out: Path,
) -> None:
    """Measure test images, restore them, and compare with the truth."""
    test = problem.part("test")[:number]
    labels = test.context if isinstance(problem.context, Labels) else None
    context, said = contexts_of_images(problem, number, given, labels)
    truth, operator = problem.to_model_space(test.data), measurement.operator(problem.event_shape)
    model = programs.given(context).model
    alike = None if context is None or bool((context != context[0]).any()) else context[0]
    data = _learned_from(problem, alike)
    images = restored(model, truth, operator, data=data, progress=True, **options._asdict())
    write_atomically(out, png(picture(problem, images)))
    if said is not None:
        print(said)
    print(
        f"{measurement.name} of {number} test images, {options.num_samples} samples of each: "
        f"{summary(images)}\n{out}"
    )


def restore_files(
    programs: Programs,
    problem: ImageProblem,
    measurement: MeasurementChoice,
    files: Sequence[Path],
    given: Given | None,
    options: RestoreOptions,
    out: Path,
) -> None:
    """Restore images of files, each by itself, into a folder."""
    observations = [read(file, measurement, problem.event_shape) for file in files]
    for observation in observations:
        check_place((out if out.is_dir() else out.parent) / f"{observation.name}.npz")
    context, said = contexts_of_images(problem, len(files), given)
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
        contents = {".npz": one.arrays(), ".png": png(one.page())}
        write_together({out / f"{observation.name}{end}": data for end, data in contents.items()})
        print(f"{one.summary()}\n{out / observation.name}.png")


def _learned_from(problem: ImageProblem, context: Tensor | None = None) -> Tensor:
    """Training images in model space, some of many; for a label those that have it, if not few."""
    train = problem.part("train")
    data = train.data
    if context is not None and train.context is not None and isinstance(problem.context, Labels):
        alike = data[train.context == context.to(train.context)]
        data = alike if len(alike) >= OF_A_LABEL else data
    return problem.to_model_space(data[:: max(1, len(data) // LEARNED_FROM)])


def images_of(run: Path, problem: Problem, num_images: int) -> ImageProblem:
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


def check_for_files(noise: float | None, num_images: int | None) -> None:
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
